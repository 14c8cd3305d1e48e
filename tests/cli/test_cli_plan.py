"""`xtuner plan` as it is typed: pages, exit codes, no torch for another card."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import xtuner
from xtuner.cli.main import main
from xtuner.config.check import to_spec
from xtuner.engine.plan.card import GIB, Card
from xtuner.engine.plan.plan import make_plan
from xtuner.engine.plan.probe import Measured, render_probe
from xtuner.engine.plan.shape import load_shape
from xtuner.engine.plan.work import Work

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


@pytest.mark.parametrize("language", ["en", "zh_cn"])
def test_the_page_in_the_docs_is_what_is_printed(language, capsys):
    text = (Path(__file__).parents[2] / f"docs/{language}/plan.md").read_text("utf-8")
    main(["plan", "internlm2_chat_1_8b_qlora_alpaca_e3", "--gpu", "8GB"])
    assert f"```\n{capsys.readouterr().out}```" in text


def test_a_size_of_two_words_is_one(capsys):
    assert main(["plan", "internlm2_chat_1_8b_qlora_alpaca_e3", "--gpu", "8", "GB"]) == 0
    assert "a card with 8 GB" in capsys.readouterr().out


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


def test_the_memory_of_a_process_on_a_cpu_is_what_was_predicted(rows):
    """In a process of its own: what earlier tests have left in the heap would be taken again."""
    words = [sys.executable, "-m", "xtuner", "plan", "--model", TINY, "--data", rows, "--probe", "loop.accumulate=1"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.search(r"peak, GiB +([\d.]+) +([\d.]+)", said)
    if found is None:
        pytest.skip("this system does not say what a process holds")
    assert float(found[2]) == pytest.approx(float(found[1]), rel=0.4)


def test_a_probe_that_would_fill_a_cpu_is_not_run(rows, capsys):
    assert main(["plan", "--model", TINY, "--data", rows, "--probe", "data.max_length=50000000"]) == 1
    said = capsys.readouterr().err
    assert "The probe is not run" in said
    assert "It fits with: data.max_length=" in said


def test_probe_says_when_to_believe_it():
    spec = to_spec({"model": {"path": TINY, "lora": {}}, "data": {"train": "rows.json"}})
    card = Card("CPU", 64 * GIB, 1e10, 0.0, (1e10, 1e10), (1e10, 1e10), 1e10, is_cpu=True)
    plan = make_plan(spec, load_shape(TINY), card, Work(2048, 2048, 10))
    right = round(plan.memory.peak + plan.memory.slack)
    assert "apart" not in render_probe(plan, Measured(right, 0, plan.speed.seconds * 1.1))
    assert "believe the measurement" in render_probe(plan, Measured(right * 2, 0, plan.speed.seconds))
    assert "believe the measurement" in render_probe(plan, Measured(right, 0, plan.speed.seconds / 2))


def test_probe_sets_measurement_beside_prediction(rows, capsys):
    words = ["plan", "--model", TINY, "--data", rows, "--probe", "data.max_length=64", "loop.accumulate=1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "predicted  measured" in said
    assert "seconds" in said
