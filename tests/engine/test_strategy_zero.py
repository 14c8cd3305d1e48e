"""DeepSpeed's ZeRO with two processes on a CPU, where the package is installed (it is not among the dependencies)."""

import json

import pytest
import torch
from strategy_fakes import DDP, HERE, STEPS, TEXTS, per_step, run_cases, spec, start, wait
from tiny import make_tiny_internlm2

from xtuner.checkpoint.state import load_weights
from xtuner.cli.spread import read_deepspeed

pytest.importorskip("deepspeed")
RESUMED = ["full_zero2", "lora_zero3"]


def zero(stage: int) -> dict:
    return {"name": "deepspeed", "options": {"config": read_deepspeed(f"deepspeed_zero{stage}")}}


CASES = {
    "full": {"lora": False, "strategy": DDP},
    "full_zero1": {"lora": False, "strategy": zero(1)},
    "full_zero2": {"lora": False, "strategy": zero(2)},
    "full_zero3": {"lora": False, "strategy": zero(3)},
    "lora": {"lora": True, "strategy": DDP},
    "lora_zero2": {"lora": True, "strategy": zero(2), "recompute": "layers"},
    "lora_zero3": {"lora": True, "strategy": zero(3), "probe": {"questions": ["What is 3?"], "max_new_tokens": 3}},
    "qlora": {"lora": True, "strategy": DDP, "quant": {"bits": 4}},
    "qlora_zero2": {"lora": True, "strategy": zero(2), "quant": {"bits": 4}},
    "qlora_zero3": {"lora": True, "strategy": zero(3), "quant": {"bits": 4}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    make_tiny_internlm2(folder / "model")
    (folder / "data.json").write_text(json.dumps(TEXTS))
    runs = {name: spec(folder, name, batch=1, accumulate=2, **parts) for name, parts in CASES.items()}
    for name in RESUMED:
        again = {"resume": str(folder / name / f"iter_{STEPS}.pth"), "work_dir": str(folder / f"{name}_again")}
        runs[f"{name}_again"] = runs[name] | again
    run_cases(folder, {name: values for name, values in runs.items() if "zero3" not in name}, timeout=400)
    for name, values in runs.items():  # a second engine of ZeRO-3 in a process waits for ever
        if "zero3" in name:
            run_cases(folder, {name: values})
    return folder


@pytest.mark.parametrize("name", [name for name in CASES if "zero" in name])
def test_losses_and_weights_are_those_of_ddp(folder, name):
    reference = name.split("_")[0]
    expected = per_step(folder / reference)
    assert expected[0] - expected[-1] > 0.5
    torch.testing.assert_close(per_step(folder / name), expected, rtol=1e-6, atol=0)
    found, whole = (load_weights(folder / one / f"iter_{2 * STEPS}.pth") for one in (name, reference))
    assert set(found) == set(whole)
    for key, weight in whole.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_is_the_one_that_was_not_stopped(folder, name):
    torch.testing.assert_close(per_step(folder / f"{name}_again"), per_step(folder / name)[STEPS // 2 :])


def test_zero_3_answers_questions(folder):
    log = next((folder / "lora_zero3").glob("*/*.log")).read_text()
    assert log.count("Sample output:") == 3  # before, at the checkpoint in the middle, and at the end


class Runs:
    """Our own reader takes its name for a harmless one; DeepSpeed's would call it."""

    def __reduce__(self):
        return torch.hub.set_dir, ("elsewhere",)


def test_a_hostile_folder_is_refused(folder, tmp_path):
    """What DeepSpeed's own loader is given to read runs nothing."""
    path = folder / "full_zero2" / f"iter_{STEPS}.pth"
    bad = tmp_path / path.name
    bad.mkdir()
    for file in path.iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    for file in bad.glob("*optim_states.pt"):
        states = torch.load(file, weights_only=False)
        torch.save({**states, "more": [Runs()]}, file)
    values = spec(folder, "hostile", batch=1, accumulate=2, lora=False, strategy=zero(2)) | {"resume": str(bad)}
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps({"hostile": values}))
    ended = wait(start([str(HERE / "strategy_worker.py"), str(cases)]))
    assert all(code != 0 for code, _ in ended)
    assert "asks for torch.hub.set_dir to be called; it is not read" in "".join(said for _, said in ended)
