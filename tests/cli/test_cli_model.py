"""`xtuner model show`: models, adapters and runs, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stock import save_model
from tiny import make_tiny_internlm2

from xtuner.checkpoint.run_record import RunRecord, write_run
from xtuner.cli.main import main


def show(path: Path | str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert main(["model", "show", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    width = lines[0].index(lines[0].split(None, 1)[1])
    return {line[:width].strip(): line[width:] for line in lines}


def test_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_tiny_internlm2(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    found = show(f"{folder}/", capsys)
    assert list(found)[:3] == ["model", "family", "code"]
    assert found["family"] == "InternLM2, InternLM2.5 (internlm2)"
    assert found["template"] == "internlm2_chat"
    assert found["LoRA"] == "on wqkv, wo, w1, w2, w3, output"
    code = found["program code"]
    assert code.startswith("comes with it and never runs: modeling_internlm2.py (InternLM2ForCausalLM), tokenization_")


def test_templates_and_foreign_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model("granite", tmp_path)
    (folder / "tokenizer_config.json").write_text("{}")
    for name in ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    assert show(folder, capsys)["template"].startswith("none known")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert show(folder, capsys)["template"] == "the tokenizer's own chat template"
    (folder / "config.json").write_text(json.dumps({"model_type": "martian", "auto_map": {"AutoModel": "mars.Model"}}))
    found = show(folder, capsys)
    assert found["program code"] == "runs only if the kind is not known here and you trust it: mars.py (Model)"
    assert found["attention"].startswith("found out")


def test_runs_and_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_tiny_internlm2(tmp_path / "base")
    run = tmp_path / "run"
    run.mkdir()
    model = {"path": str(base), "lora": {"r": 8, "alpha": 16}, "quant": {"bits": 4}}
    record = RunRecord({"model": model}, template="vicuna", base={"path": str(base)}, status="finished")
    write_run(run, record)
    found = show(run, capsys)
    assert found["run"] == f"{run} (finished)"
    assert found["trained"] == "an adapter (LoRA, rank 8, alpha 16) over 4-bit weights"
    assert (found["model"], found["template"]) == (str(base), "vicuna (trained)")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["wo", "w1"], "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    found = show(adapter, capsys)
    assert found["adapter"] == f"{adapter} (LoRA, rank 4, alpha 8, on w1, wo)"
    assert found["family"] == "InternLM2, InternLM2.5 (internlm2)"
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone"}))
    assert show(adapter, capsys)["model"] == "/gone (not there any more)"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["show", "/nowhere/at/all"], 1, "There is no model folder"),
        (["show", __file__], 1, "is a file; a model is a folder"),
        (["show"], 2, "required: PATH"),
        (["shw", "x"], 2, "invalid choice"),
        ([], 2, "required: show"),
    ],
)
def test_wrong_words(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", *words]) == code
    assert message in capsys.readouterr().err


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    folder = make_tiny_internlm2(tmp_path)
    code = (
        "import sys; from xtuner.cli.main import main; assert main(['model', 'show', sys.argv[1]]) == 0;"
        "sys.exit(', '.join({'torch', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
