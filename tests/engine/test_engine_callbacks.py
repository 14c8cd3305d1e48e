"""Callbacks that write elsewhere: TensorBoard, Weights & Biases, a model folder; templates written out; pack_length."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny import make_tiny_internlm2
from transformers import AutoModelForCausalLM

from xtuner.config.spec import RunSpec
from xtuner.engine.schedule import build_schedule
from xtuner.engine.train import train
from xtuner.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_internlm2(tmp_path_factory.mktemp("model"), layers=1, hidden=32)


def make_spec(model: Path, folder: Path, **parts: Any) -> RunSpec:
    rows = [{"conversation": [{"input": f"{i}?", "output": f"{i}."}]} for i in range(40)]
    (folder / "rows.json").write_text(json.dumps(rows))
    values = {
        "model": {"path": str(model)},
        "data": {"train": str(folder / "rows.json"), "max_length": 64, "cache": str(folder / "cache")},
        "loop": {"max_iters": 4, "log_every": 2},
        "work_dir": str(folder / "work"),
    }
    return RunSpec.model_validate({**values, **parts})


class Writer:
    """What `torch.utils.tensorboard` and `wandb` offer, as far as it is used here."""

    def __init__(self, folder: str = "") -> None:
        self.folder = folder
        self.written: list[tuple[str, int]] = []
        self.ended: int | None = None
        WRITERS.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.written.append((name, step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.ended = 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.written += [(name, step) for name in values]

    def finish(self, exit_code: int) -> None:
        self.ended = exit_code


WRITERS: list[Writer] = []


def test_tensorboard(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    WRITERS.clear()
    work = train(make_spec(model, tmp_path, callbacks=["tensorboard"]))
    (writer,) = WRITERS
    assert Path(writer.folder).parent.parent == work
    assert {step for name, step in writer.written if name == "loss"} == {2, 4}
    assert writer.ended == 0


def test_wandb(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, Any] = {}
    fake = ModuleType("wandb")
    fake.init = lambda **options: opened.update(options) or Writer()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    WRITERS.clear()
    train(make_spec(model, tmp_path, callbacks=[{"name": "wandb", "project": "mine"}]), name="first")
    (writer,) = WRITERS
    assert (opened["project"], opened["name"], opened["config"]["loop"]["max_iters"]) == ("mine", "first", 4)
    assert {step for name, step in writer.written if name == "lr"} == {2, 4}
    assert writer.ended == 0


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_package_that_is_not_installed(
    name: str, package: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        train(make_spec(model, tmp_path, callbacks=[name]))


def test_the_model_as_a_folder(model: Path, tmp_path: Path) -> None:
    work = train(make_spec(model, tmp_path, callbacks=["hf_model"]))
    loaded = AutoModelForCausalLM.from_pretrained(work / "hf_model")
    assert sum(one.numel() for one in loaded.parameters()) > 0
    assert (work / "hf_model" / "tokenizer_config.json").is_file()


def test_a_callback_that_is_none(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    with pytest.raises(UserError, match=r"The callback .*mine\.py:Mine is none"):
        train(make_spec(model, tmp_path, callbacks=[f"{tmp_path}/mine.py:Mine"]))


def test_a_template_that_is_written_out(model: Path, tmp_path: Path) -> None:
    spec = make_spec(model, tmp_path)
    spec = RunSpec.model_validate(
        {
            **spec.model_dump(),
            "data": {
                **spec.data.model_dump(),
                "template": {"instruction": "Ask {input} ", "suffix": "!", "suffix_as_eos": True},
                "pack_length": 128,
            },
            "probe": {"questions": ["1?"], "max_new_tokens": 2},
        }
    )
    work = train(spec)
    record = json.loads((work / "run.json").read_text())
    assert record["template"]["instruction"] == "Ask {input} "
    log = next(work.glob("*/*.log")).read_text()
    assert "Ask 0? 0.!" in log
    assert "packs of at most 128 tokens" in log


def test_a_warm_up_in_iterations() -> None:
    spec = RunSpec.model_validate({"model": {"path": "m"}, "data": {"train": "d"}, "schedule": {"warmup_iters": 3}})
    assert build_schedule(spec.schedule, 1.0, 10).warmup == 3
    assert build_schedule(spec.schedule, 1.0, 2).warmup == 2
