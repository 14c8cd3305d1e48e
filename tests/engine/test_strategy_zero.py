"""DeepSpeed's ZeRO with two processes on a CPU, and with one, where the package is installed (on Linux, for tests)."""

import importlib.util
import json

import pytest
import torch
from strategy_fakes import DDP, HERE, STEPS, TEXTS, per_step, run_cases, spec, start, type_train, wait
from tiny import make_tiny_internlm2

from xtuner.checkpoint.state import load_weights
from xtuner.cli.spread import read_deepspeed
from xtuner.engine.strategy.deepspeed import import_deepspeed
from xtuner.engine.strategy.world import World
from xtuner.errors import UserError

if importlib.util.find_spec("deepspeed") is None:  # looked for, not imported: that is what a run must ask for
    pytest.skip("DeepSpeed is not installed", allow_module_level=True)
RESUMED = ["full_zero2", "lora_zero3"]
OF_OTHER_TOOLS = {
    "train_batch_size": "auto",
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu"},
        "reduce_bucket_size": "auto",
    },
}
"""A config as it is written for transformers' Trainer."""


def zero(name: int | str) -> dict:
    return {"name": "deepspeed", "options": {"config": read_deepspeed(f"deepspeed_zero{name}")}}


CASES = {
    "full": {"lora": False, "strategy": DDP},
    "full_zero1": {"lora": False, "strategy": zero(1)},
    "full_zero2": {"lora": False, "strategy": zero(2)},
    "full_zero2_offload": {"lora": False, "strategy": zero("2_offload"), "recompute": "offload_groups"},
    "full_zero2_json": {"lora": False, "strategy": {"name": "deepspeed", "options": {"config": OF_OTHER_TOOLS}}},
    "full_zero3": {"lora": False, "strategy": zero(3)},
    "lora": {"lora": True, "strategy": DDP},
    "lora_zero2": {"lora": True, "strategy": zero(2), "recompute": "layers"},
    "lora_zero3": {"lora": True, "strategy": zero(3), "probe": {"questions": ["What is 3?"], "max_new_tokens": 3}},
    "lora_zero3_offload": {"lora": True, "strategy": zero("3_offload")},
    "qlora": {"lora": True, "strategy": DDP, "quant": {"bits": 4}},
    "qlora_zero2": {"lora": True, "strategy": zero(2), "quant": {"bits": 4}},
    "qlora_zero3": {"lora": True, "strategy": zero(3), "quant": {"bits": 4}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    make_tiny_internlm2(folder / "model")
    rows = TEXTS[:-1]  # an odd number: at the end of an epoch one rank has nothing to learn, and never needs the head
    (folder / "data.json").write_text(json.dumps(rows))
    runs = {name: spec(folder, name, batch=1, accumulate=2, **parts) for name, parts in CASES.items()}
    for name in RESUMED:
        again = {"resume": str(folder / name / f"iter_{STEPS}.pth"), "work_dir": str(folder / f"{name}_again")}
        runs[f"{name}_again"] = runs[name] | again
    run_cases(folder, runs)
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


def test_one_process_runs_and_is_told_why_it_takes_more_memory(folder):
    config = folder / "alone.yaml"
    config.write_text(json.dumps(spec(folder, "alone", batch=1, accumulate=4, lora=False)))
    process = type_train(config, "--deepspeed", "deepspeed_zero2", size=1)
    [(code, said)] = wait([process], timeout=300)
    assert code == 0, said
    assert "ZeRO on one card saves nothing, and may take up to" in said
    found = per_step(folder / "alone")
    assert len(found) == STEPS
    assert found[0] - found[-1] > 0.5


def test_a_missing_compiler_is_a_sentence(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="there is no C\\+\\+ compiler no-such-compiler"):
        import_deepspeed(torch.device("cpu"), World())


def test_all_weights_are_counted_wherever_they_are(folder):
    counts = {log_of(folder / name).split(" trained weights")[0].split()[-1] for name in ("full", "full_zero3")}
    assert len(counts) == 1


def log_of(work_dir) -> str:
    return next(work_dir.glob("*/*.log")).read_text()


def test_zero_3_answers_questions(folder):
    log = log_of(folder / "lora_zero3")
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
