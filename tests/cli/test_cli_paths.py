"""A wrong path is said before torch is imported, whichever command it was typed for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xtuner.checkpoint.run_record import RunRecord, write_run

PROGRAM = """
import sys
from xtuner.cli.main import main
code = main(sys.argv[1:])
print(sorted({"torch", "transformers", "peft", "datasets"} & set(sys.modules)), file=sys.stdout)
sys.exit(code)
"""
CONFIG = "internlm2_chat_1_8b_qlora_alpaca_e3"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What looks like a model, an adapter, data, and a run whose base has gone."""
    for name in ("model", "adapter", "run/adapter"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "internlm2"}')
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "their/base"}')
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "run" / "iter_2.pth").touch()
    (tmp_path / "data.json").write_text("[]")
    (tmp_path / "empty.json").touch()
    write_run(
        tmp_path / "run", RunRecord({"model": {"path": "m"}, "data": {"train": "x.json"}}, base={"path": "/gone"})
    )
    model = {"path": "./model", "weights": "none.pth"}
    (tmp_path / "w.yaml").write_text(json.dumps({"model": model, "data": {"train": "data.json"}}))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--model", "./nowhere", "--data", "data.json"], "There is no model folder ./nowhere."),
        (
            ["train", "--model", "./model", "--data", "dat.json"],
            "There is no data file dat.json.\nDid you mean data.json",
        ),
        (["train", "--model", "./model", "--data", "empty.json"], "empty.json is empty."),
        (["train", "--model", "./adapter", "--data", "data.json"], "./adapter is an adapter, not a model."),
        (["train", "--model", "data.json", "--data", "data.json"], "data.json is a file; a model is a folder."),
        (["train", CONFIG, "model.path=./no"], "There is no model folder ./no."),
        (["train", CONFIG, "model.path=./model", "data.validation=val.json"], "There is no data file val.json."),
        (["train", CONFIG, "model.path=./model", "model.tokenizer=./t"], "There is no model folder ./t."),
        (["train", CONFIG, "model.path=./model", "model.adapter=./model"], "There is no adapter in ./model"),
        (["train", "w.yaml"], "There is no checkpoint none.pth."),
        (["chat", "./nowhere"], "There is no model folder ./nowhere."),
        (["chat", "./model", "--adapter", "./model"], "There is no adapter in ./model"),
        (["chat", "./model", "--adapter", "nothing"], "There is no adapter in nothing (there is no such folder)."),
        (
            ["chat", "./model", "--adapter", "run"],
            "There is no adapter in run itself, it is one folder down.",
        ),
        (["chat", "adapter"], "adapter is an adapter, not a model.\nGive the base model (their/base) as the model"),
        (["chat", "run/iter_2.pth"], "run/iter_2.pth is a checkpoint of a training, not a model.\nGive the folder of"),
        (["chat", ""], "The name of the model is empty."),
        (["chat", "run"], "The base model of this run is not in /gone any more."),
        (["convert", "merge", "./nowhere", "adapter", "out"], "There is no model folder ./nowhere."),
        (["convert", "merge", "./model", "nothing", "out"], "There is no adapter in nothing"),
        (["convert", "pth_to_hf", CONFIG, "iter_1.pth:", "out"], "There is no checkpoint iter_1.pth."),
        (["convert", "split", "nothing/here/at", "out"], "There is no model folder nothing/here/at."),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_wrong_paths(words: list[str], said: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=folder, capture_output=True, text=True)
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) <= 2
    assert done.stdout == "[]\n", "nothing else was said, and nothing heavy was imported"
    assert done.returncode == 1
    assert not (folder / "work_dirs").exists()
