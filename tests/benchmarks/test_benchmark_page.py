"""docs/benchmarks.md and its pictures say what benchmarks/results say."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import page
from benchmarks.chart import Bar, Group, render_chart


def test_page_and_pictures_are_up_to_date():
    assert page.main(["--check"]) == 0, "type: python benchmarks/page.py"


def test_every_table_has_a_place():
    places = page.SECTION.findall(page.PAGE.read_text("utf-8"))
    assert sorted(places) == sorted(page.KINDS)


def test_a_chart_is_drawn_to_scale():
    bars = (Bar("ours <1>", 200.0, "200", ours=True), Bar("other", 50.0, "50"), Bar("none", None, "out of memory"))
    drawn = ElementTree.fromstring(render_chart("Speed & size", [Group("8B", bars)]))
    boxes = [box for box in drawn.iter() if box.tag.endswith("rect")]
    assert [float(box.get("width")) for box in boxes] == pytest.approx([380.0, 95.0])
    words = [text.text for text in drawn.iter() if text.tag.endswith("text")]
    assert words == ["Speed & size", "8B", "ours <1>", "200", "other", "50", "none", "out of memory"]
    assert "prefers-color-scheme: dark" in render_chart("x", [])


ROW = {"tokens_per_second": 1000, "mfu": 0.5, "allocated_gib": 5.0, "reserved_gib": 6.0, "losses": [2.0, 1.0]}


def test_tables_show_failures_and_padding():
    rows = [
        {"case": "xtuner:lora:llama3-8b:chat32", "recompute": "none", "real_tokens": 1.0, **ROW},
        {"case": "hf:lora:llama3-8b:chat32", "real_tokens": 0.25, **ROW},
        {"case": "trl:lora:llama3-8b:chat32:packing=bfd:rows=2", "failed": "out of memory"},
    ]
    lines = page.speed_table(rows).splitlines()[2:]
    assert lines[0].startswith("| Llama-3-8B LoRA, chat samples | **XTuner**, recompute=none | 1,000 | 50 % |")
    assert lines[1].startswith("|  | transformers + PEFT, 32 padded | 1,000 |")
    assert lines[1].endswith("| 25 % |")
    assert lines[2].startswith("|  | TRL, packing=bfd | out of memory |")
    assert len({line.count("|") for line in lines}) == 1


def test_tables_of_other_kinds():
    case = "xtuner:qlora:llama3-8b:longest:card=24GB:segment=65536"
    found = {"longest": 100000, "refused": 110000, "line": 105000, "plan": 98304, "allocated_gib": 22.5}
    assert "| 24 GB | **XTuner**, recompute=offload | 100,000 | 110,000 | 105,000 | 98,304 | 22.50 |" in (
        page.longest_table([{"case": case, "recompute": "offload", **found}])
    )
    predicted = {"allocated_gib": 5.5, "tokens_per_second": 900, "fits": True}
    row = {"case": "xtuner:lora:internlm2-1.8b:2x4096:recompute=none", "predicted": predicted, **ROW}
    assert "| 5.50 | 5.00 | +10 % | 900 | 1,000 | -10 % |" in page.plan_table([row])
    assert [bar.words for group in page.plan_groups([row]) for bar in group.bars] == ["110 %", "90 %"]
    start = {"case": "start 1 of x", **dict.fromkeys(page.PHASES, 1.5)}
    assert "| start 1 of x | 1.5 |" in page.startup_table([start])
    assert page.startup_groups([start])[0].bars[-1].ours
    assert page.longest_groups([{"case": case, "failed": "out of memory"}])[0].bars[0].value is None
