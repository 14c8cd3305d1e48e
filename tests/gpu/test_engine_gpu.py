"""The engine on a card: no waiting inside a step, number formats, paged optimisers, resuming, no memory."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))
from engine_fakes import Next, make_run

from xtuner.checkpoint.state import load_state
from xtuner.config.spec import RunSpec
from xtuner.engine.loop import run_loop
from xtuner.engine.precision import Precision
from xtuner.engine.resume import read_meta, restore
from xtuner.engine.train import train
from xtuner.errors import UserError

MODEL = Path(__file__).parent.parent / "golden" / "internlm2"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")

FORMATS = {
    "float32": Precision(torch.float32, torch.float32, ""),
    "bfloat16": Precision(torch.bfloat16, torch.float32, ""),
    "float16": Precision(torch.float16, torch.float32, ""),
}


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


def finish(run):
    run_loop(run)
    run.work.close()
    return run


def test_the_host_never_waits_inside_a_step(tmp_path):
    """Until a log line is due nothing is read from the card: torch itself watches."""
    parts = {"loop": {"max_iters": 21, "accumulate": 2, "log_every": 20}, "checkpoint": {"every": None, "last": False}}
    run = make_run(tmp_path, precision=FORMATS["bfloat16"], **parts)
    run.num_iters = 2  # everything is allocated and compiled once
    run_loop(run)
    run.callbacks = []
    run.num_iters = 18
    torch.cuda.set_sync_debug_mode("error")
    try:
        run_loop(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run.work.close()
    assert run.metrics.scalars()["loss"] > 0


@pytest.mark.parametrize("name", ["adamw", "adamw_bf16", "paged_adamw", "paged_adamw_8bit", "adamw_8bit", "sgd"])
@pytest.mark.parametrize("kind", list(FORMATS))
def test_save_stop_resume(tmp_path, kind, name):
    parts = {
        "loop": {"epochs": 3, "accumulate": 4, "log_every": 3},
        "checkpoint": {"every": 5, "keep": None},
        "optim": {"lr": 0.02, "name": name},
        "precision": FORMATS[kind],
    }
    whole = finish(make_run(tmp_path, **parts))
    again = make_run(tmp_path, **parts)
    path = tmp_path / "iter_10.pth"
    restore(again, path, read_meta(again.strategy, path))
    finish(again)
    assert torch.allclose(weights(whole), weights(again), atol=1e-6)
    assert not torch.equal(weights(whole), weights(make_run(tmp_path, **parts)))
    assert ("loss_scaler" in load_state(path)) == (kind == "float16")


def make_spec(folder, work_dir, **parts):
    rows = [{"conversation": [{"input": f"What is {i}?", "output": f"{i} is a number."}]} for i in range(64)]
    (folder / "data.json").write_text(json.dumps(rows))
    values = {
        "model": {"path": str(MODEL), "lora": {"r": 8, "dropout": 0.1}},
        "data": {
            "train": str(folder / "data.json"),
            "template": "internlm2_chat",
            "max_length": 128,
            "cache": str(folder / "cache"),
        },
        "loop": {"max_iters": 40, "accumulate": 2},
        "checkpoint": {"every": 15, "keep": None},
        "optim": {"lr": 5e-3},
        "probe": {"questions": ["Who are you?"], "max_new_tokens": 4},
        "work_dir": str(folder / work_dir),
    }
    return RunSpec.model_validate({**values, **parts})


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"loop": {"max_iters": 40, "precision": "float16"}},
        {"model": {"path": str(MODEL)}, "optim": {"lr": 1e-3, "name": "paged_adamw_8bit"}},
        {"model": {"path": str(MODEL), "quant": {}, "lora": {"r": 8}}, "optim": {"lr": 5e-3, "name": "paged_adamw"}},
    ],
    ids=["lora", "lora16", "full", "qlora"],
)
def test_train_and_resume(tmp_path, parts):
    work_dir = train(make_spec(tmp_path, "work", **parts))
    state = load_state(work_dir / "iter_40.pth")
    lines = [json.loads(line) for line in next(work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] - 1
    train(make_spec(tmp_path, "work", resume=str(work_dir / "iter_15.pth"), **parts))
    again = load_state(work_dir / "iter_40.pth")
    for name, tensor in state["state_dict"].items():
        assert torch.allclose(tensor.float(), again["state_dict"][name].float(), atol=2e-3), name


class Hungry(Next):
    """Asks for more memory than the card has."""

    def __call__(self, model, batch):
        torch.empty(2**40, device="cuda")
        raise AssertionError("that much memory?")


def test_no_memory_says_what_was_held_and_what_to_change(tmp_path):
    run = make_run(tmp_path, precision=FORMATS["bfloat16"], loop={"batch_size": 2})
    run.objective = Hungry()
    with pytest.raises(UserError, match=r"MiB were held of [\d,]+\).*loop\.batch_size=1 loop\.accumulate=2"):
        run_loop(run)
    run.work.close()
