"""The benchmark of several cards, at toy size with two processes on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scaling import CASES, read_case, render_table

ROOT = Path(__file__).parents[2]


def test_two_processes_are_measured(tmp_path):
    case = "full:toy:2x64:2xfsdp:resume"
    words = [str(ROOT / "benchmarks" / "scaling.py"), "--out", str(tmp_path), "--cards", "2", "--cases", case]
    made = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=200, check=True)
    [row] = [json.loads(line) for line in (tmp_path / "scaling.jsonl").read_text().splitlines()]
    assert "failed" not in row, row
    assert row["cards"] == 2
    assert row["tokens_per_second_per_card"] * row["step_seconds"] * 2 == pytest.approx(256, rel=0.05)
    assert row["resume_seconds"] > 0
    assert row["losses"][0] > 0
    assert case in made.stdout


def test_tokens_of_a_case():
    assert read_case("lora:llama3-8b:2x4096:4xddp").tokens == 4 * 2 * 4096
    assert read_case("lora:llama3-8b:1x131072:4xulysses").tokens == 131072  # ranks share the row
    assert {(case.cards, case.strategy) for case in map(read_case, CASES)} >= {
        (cards, strategy) for cards in (2, 4) for strategy in ("ddp", "fsdp", "deepspeed_zero2", "deepspeed_zero3")
    }


def test_speed_is_compared_with_one_card():
    rows = [
        {"case": f"lora:toy:2x64:{spread}", "tokens_per_second_per_card": speed, "memory_gib": 1.0}
        for spread, speed in (("1xsingle", 1000), ("4xddp", 960))
    ]
    lines = render_table([*rows, {"case": "lora:toy:2x64:2xddp", "failed": "no time"}])
    assert len(lines) == 3
    assert "96.0%" in lines[2]
