"""`xtuner train`: what is handed to the engine, and what is refused before."""

import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from xtuner.catalog.render import render
from xtuner.cli.launch import Layout
from xtuner.cli.load import load_run
from xtuner.cli.main import main
from xtuner.config.check import to_spec
from xtuner.config.dump import dump_yaml
from xtuner.config.reader import read_text
from xtuner.config.spec import RunSpec
from xtuner.errors import UserError

NAME = "internlm2_chat_1_8b_qlora_alpaca_e3"


class FakeEngine(ModuleType):
    """Stands where `xtuner.engine.train` is; notes what it is asked to run."""

    spec: RunSpec
    name: str
    dump: tuple[str, str]

    def train(self, spec: RunSpec, *, name: str, dump: tuple[str, str]) -> Path:
        """Note everything."""
        self.spec, self.name, self.dump = spec, name, dump
        return Path()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    fake = FakeEngine("xtuner.engine.train")
    monkeypatch.setitem(sys.modules, "xtuner.engine.train", fake)
    monkeypatch.chdir(tmp_path)
    for name in ("NPROC_PER_NODE", "NNODES"):
        monkeypatch.delenv(name, raising=False)
    return fake


def error_of(*words: str, capsys: pytest.CaptureFixture[Any], code: int = 1) -> str:
    assert main(["train", *words]) == code
    return str(capsys.readouterr().err)


def test_a_file_a_name_and_a_dump(engine: FakeEngine, tmp_path: Path) -> None:
    Path("my.py").write_text(render(NAME), "utf-8")
    assert main(["train", "./my.py"]) == 0
    assert (engine.name, engine.dump[0]) == ("my", "my.py")
    from_file, dump = engine.spec, engine.dump[1]
    assert main(["train", NAME]) == 0
    assert (engine.name, engine.dump[0]) == (NAME, f"{NAME}.py")
    assert engine.spec == from_file
    Path("work").mkdir()
    Path("work/my.py").write_text(dump, "utf-8")
    assert main(["train", "work/my.py", "--work-dir", "w", "--seed", "3", "--resume", "work/iter_1.pth:"]) == 0
    assert engine.dump[1] == dump
    assert (engine.spec.work_dir, engine.spec.seed, engine.spec.resume) == ("w", 3, "work/iter_1.pth:")
    assert main(["train", "my.py", "--resume"]) == 0
    assert engine.spec.resume == "auto"


def test_settings_of_both_languages(engine: FakeEngine) -> None:
    words = ["train", NAME, "r=8", "--work-dir", "w", "--cfg-options", "max_length=512", "max_epochs=1"]
    assert main(words) == 0
    assert engine.spec.data.max_length == 512
    assert engine.spec.loop.epochs == 1
    assert engine.spec.model.lora is not None
    assert engine.spec.model.lora.r == 8
    assert engine.dump[0] == f"{NAME}.yaml", "a spec's settings cannot be said in the old language"
    saved = to_spec(read_text(engine.dump[1], Path("x.yaml"), "yaml").values)
    assert saved == engine.spec.model_copy(update={"work_dir": None})
    assert main(["train", "lr=1e-5", NAME, "--seed", "1", "epochs=2"]) == 0
    assert (engine.spec.optim.lr, engine.spec.loop.epochs) == (1e-5, 2)
    assert main(["train", "--cfg-options", "max_length=256", NAME]) == 0
    assert engine.spec.data.max_length == 256


def test_an_option_without_effect_is_said(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("xtuner").propagate = True
    with caplog.at_level(logging.WARNING, "xtuner"):
        assert main(["train", NAME, "--cfg-options", "dataloader_num_workers=4", "max_length=512"]) == 0
    assert "dataloader_num_workers=4 changes nothing in this run." in caplog.text
    assert "max_length=512" not in caplog.text


def test_yaml_and_run_folders(engine: FakeEngine, tmp_path: Path) -> None:
    spec = load_run(NAME).spec
    Path("short.yaml").write_text(dump_yaml(spec), "utf-8")
    assert main(["train", "short.yaml", "--cfg-options", "optim.lr=1e-5", "epochs=2"]) == 0
    assert (engine.spec.optim.lr, engine.spec.loop.epochs, engine.dump[0]) == (1e-5, 2, "short.yaml")
    run = tmp_path / "work_dirs" / "mine"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"spec": spec.model_dump(mode="json")}), "utf-8")
    assert main(["train", "work_dirs/mine/", "--resume"]) == 0
    assert (engine.name, engine.spec.work_dir, engine.spec.resume) == ("mine", "work_dirs/mine", "auto")


def test_resume_gives_back_words_that_are_no_checkpoint(engine: FakeEngine, tmp_path: Path) -> None:
    Path("my.py").write_text(render(NAME), "utf-8")
    assert main(["train", "my.py", "--resume", "epochs=7"]) == 0
    assert (engine.spec.resume, engine.spec.loop.epochs) == ("auto", 7)
    assert main(["train", "--resume", "my.py"]) == 0
    assert (engine.name, engine.spec.resume) == ("my", "auto")
    assert main(["train", "my.py", "--resume", "iter_3.pth:"]) == 0
    assert engine.spec.resume == "iter_3.pth:", "the engine drops what `ls` leaves there"


@pytest.mark.parametrize("words", [["--local_rank", "0"], ["--local-rank=0"]])
def test_what_old_launchers_add_is_taken(words: list[str], engine: FakeEngine) -> None:
    assert main(["train", NAME, *words]) == 0
    assert engine.name == NAME


def test_a_model_and_data_are_enough(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("models/internlm2-chat-1_8b")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "internlm2"}')
    tokens = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    for name in ("a.json", "b.jsonl"):
        Path(name).write_text("[]")
    assert main(["train", "--model", str(folder), "--data", "a.json", "b.jsonl", "epochs=1"]) == 0
    spec = engine.spec
    assert spec.data.template == "internlm2_chat", "found out from the model"
    assert [source.path for source in spec.data.train] == ["a.json", "b.jsonl"]
    assert spec.model.lora is not None
    assert (spec.model.lora.r, spec.model.quant, spec.loop.epochs) == (64, None, 1)
    assert spec.probe is not None
    assert engine.name == "internlm2-chat-1_8b-a"
    shown = capsys.readouterr().out
    assert engine.dump[1] in shown
    assert to_spec(read_text(shown, Path("x.yaml"), "yaml").values) == spec, "what is printed is a config"
    assert main(["train", "--model", "hub/id", "--data", "a.json", "--bits", "4", "--template", "default"]) == 0
    assert engine.spec.model.quant is not None
    assert engine.spec.data.template == "default"
    Path("short").symlink_to(folder)
    assert main(["train", "--model", "./short/", "--data", "a.json"]) == 0
    assert engine.name == "short-a", "a link keeps the name that was typed"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "Nothing to train."),
        (["--model", "m"], 2, "--data FILE is missing."),
        (["--data", "d"], 2, "--model FOLDER is missing."),
        (["--model", "m", "--data", "d", "--template", "internlm2_cht"], 1, "Did you mean internlm2_chat"),
        (["--model", "m", "--data", "d", "--cfg-options", "a=1"], 2, "--cfg-options needs a config."),
        (["--model", "m", "--data", "d", "--seed", "1", "c.py"], 2, "Both a config (c.py) and --model/--data."),
        (["a.py", "b.py"], 2, "More than one config: a.py, b.py."),
        (["missing.py"], 1, "Cannot find missing.py"),
        ([NAME.replace("alpaca", "alpca")], 1, f"Did you mean {NAME}"),
        ([NAME, "--bits", "4"], 2, "model.quant.bits=4"),
        ([NAME, "lrr=1"], 2, "Did you mean lr?"),
        ([NAME, "--cfg-options", "max_lenght=1"], 1, "Did you mean max_length"),
        ([NAME, "--deepspeed", "deepspeed_zero4"], 1, "Did you mean deepspeed_zero"),
        ([NAME, "--launcher", "slurm"], 2, "srun has not started this."),
        ([NAME, "--work-dirs", "w"], 2, "Unrecognized arguments: --work-dirs w.\nType: xtuner train --help"),
    ],
)
def test_refusals(
    words: list[str], code: int, said: str, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in error_of(*words, capsys=capsys, code=code)
    assert not hasattr(engine, "spec")


def test_several_processes_are_started_for_training_alone(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[Layout, list[str]]] = []

    def launch(layout: Layout, words: list[str]) -> int:
        started.append((layout, words))
        return 7

    monkeypatch.setattr("xtuner.cli.train.launch", launch)
    monkeypatch.setenv("NPROC_PER_NODE", "8")
    assert main(["train", NAME, "--seed", "3"]) == 7
    assert started == [(Layout(8, 1, 0, "127.0.0.1", None), ["train", NAME, "--seed", "3"])]
    assert not hasattr(engine, "spec"), "they train, not this one"
    assert main(["list-cfg"]) == 0, "a stray variable starts nothing else"
    assert len(started) == 1
    monkeypatch.setenv("NPROC_PER_NODE", "x")
    assert "NPROC_PER_NODE is x" in error_of(NAME, capsys=capsys, code=2)
    monkeypatch.setenv("NPROC_PER_NODE", "1")
    monkeypatch.setenv("MKL_SERVICE_FORCE_INTEL", "1")
    assert main(["train", NAME]) == 0


def test_a_worker_starts_nothing(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPROC_PER_NODE", "8")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert main(["train", NAME]) == 0
    assert engine.spec.strategy.name == "auto"


def test_names_near_a_file_and_broken_files(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text("model = dict(\n")
    with pytest.raises(UserError, match=r"my\.py:1: this is not Python"):
        load_run(str(tmp_path / "my.py"))
    with pytest.raises(UserError) as caught:
        load_run(str(tmp_path / "my"))
    assert f"Did you mean {tmp_path / 'my.py'}?" in str(caught.value)
    with pytest.raises(UserError, match=r"has no run\.json"):
        load_run(str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="is not a config"):
        load_run(str(tmp_path / "notes.txt"))
