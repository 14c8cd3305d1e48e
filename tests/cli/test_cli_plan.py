"""`xtuner plan` as it is typed: pages, exit codes, no torch for another card."""

import subprocess
import sys
from pathlib import Path

import pytest

import xtuner
from xtuner.cli.main import main

TINY = str(Path(xtuner.__file__).parent / "assets/tiny")


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "Hello", "output": "Hello to you"}\n', "utf-8")
    return str(file)


def test_a_catalogue_name_on_a_small_card(capsys):
    assert main(["plan", "internlm2_chat_1_8b_qlora_alpaca_e3", "--gpu", "8GB"]) == 0
    said = capsys.readouterr().out
    for part in (
        "1.89 billion weights",
        "published sizes",
        "weights, NF4",
        "of 7.84: it fits",
        "tokens/s",
        "recompute",
    ):
        assert part in said


def test_what_does_not_fit_exits_with_one_and_says_what_would(capsys):
    assert main(["plan", "llama3_8b_full_alpaca_e3", "--gpu", "4090"]) == 1
    said = capsys.readouterr().out
    assert "it does not fit" in said
    assert "It fits with: model.lora.r=64" in said


def test_settings_change_the_plan(capsys):
    words = ["plan", "llama2_7b_qlora_alpaca_e3", "--gpu", "H200", "model.recompute=none", "loop.max_iters=20"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "recompute: nothing (as asked for)" in said
    assert "20 iterations" in said


def test_another_card_needs_no_torch():
    code = "import sys; from xtuner.cli.main import main; main(sys.argv[1:]); "
    code += "sys.exit(', '.join({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)) or 0)"
    words = ["plan", "llama2_7b_qlora_alpaca_e3", "--gpu", "8GB"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Nothing to plan"),
        (["llama3_8b_full_alpaca_e3", "--gpu", "H300"], "no card H300"),
        (["llama3_8b_full_alpaca_e3", "--gpu", "8GB", "--probe"], "--probe runs here"),
        (["llama3_8b_full_alpaca", "--gpu", "8GB"], "Cannot find"),
        (
            ["llama2_7b_qlora_alpaca_e3", "--gpu", "4090", "model.quant.bits=8", "model.quant.type=fp8"],
            "RTX 4090 cannot",
        ),
    ],
)
def test_slips_are_said_in_a_sentence(words, said, capsys):
    assert main(["plan", *words]) in (1, 2)
    assert said in capsys.readouterr().err


def test_probe_sets_measurement_beside_prediction(rows, capsys):
    words = ["plan", "--model", TINY, "--data", rows, "--probe", "data.max_length=64", "loop.accumulate=1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "predicted  measured" in said
    assert "seconds" in said
