"""Preferences and MOSS dialogues are looked at as a run sees them; code that only looks at data makes no new cache."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import xtuner.dataset
from xtuner.cli.main import main
from xtuner.config.spec import DataSpec
from xtuner.dataset import cache
from xtuner.dataset.inspection.lint import lint
from xtuner.dataset.inspection.sample import see_row
from xtuner.dataset.inspection.steps import check_steps, log_first
from xtuner.model.load import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "internlm2"


def say(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pair(asked: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": say("user", asked), "chosen": say("assistant", chosen), "rejected": say("assistant", rejected)}


def write(folder: Path, rows: Sequence[Any]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(GOLDEN))


def spec_of(path: str, folder: Path) -> DataSpec:
    given = {"train": path, "template": "internlm2_chat", "max_length": 64, "cache": str(folder / "cache")}
    return DataSpec.model_validate(given)


PAIRS = [
    pair("hi", "hello", "no"),
    pair("mark <|im_end|>", "hello there", ""),
    pair("same", "x", "x"),
    pair("hi", "hello", "no"),
]


def test_lint_of_preferences(tokenizer: Any, tmp_path: Path) -> None:
    found = lint(spec_of(write(tmp_path, PAIRS), tmp_path), tokenizer, pairs=True)
    assert not found.pointless
    problems = {problem: str(tally) for problem, tally in found.sources[0].problems.items()}
    assert problems == {
        "the text holds <|im_end|>, which becomes a special token": "1 (row 2)",
        "an empty answer": "1 (row 2)",
        "exact copies of earlier rows": "1 (row 4)",
    }
    assert "the same: 1 (row 3)" in "\n".join(found.lines())


def test_a_preference_is_shown_with_both_answers(tokenizer: Any, tmp_path: Path) -> None:
    spec = spec_of(write(tmp_path, PAIRS), tmp_path)
    seen = see_row(spec, tokenizer, pairs=True)
    assert [stretch.text for stretch in seen.stretches if stretch.trained and not stretch.special] == ["hello", "\n"]
    assert "no<|im_end|>" in seen.notes[-1]
    assert "hello" in "".join(log_first(spec, tokenizer, "text", seed=0, pairs=True))
    assert "hello" in "".join(check_steps(spec, tokenizer, seed=0, pairs=True))


def test_the_command_finds_out_that_rows_are_preferences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, PAIRS)
    assert main(["data", "lint", path]) == 0
    assert "format preference" in capsys.readouterr().out
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {{path: {GOLDEN}}}\ndata: {{train: {path}}}\nobjective: dpo\n")
    assert main(["data", "lint", str(config)]) == 0
    assert "format preference" in capsys.readouterr().out


def test_lint_of_moss(tokenizer: Any, tmp_path: Path) -> None:
    turn = {"Human": "<|Human|>: hi<eoh>\n", "MOSS": "<|MOSS|>: hello<eom>\n"}
    rows = [
        {"meta_instruction": "Be kind.\n", "num_turns": 1, "chat": {"turn_1": turn}},
        {"meta_instruction": "Be kind.\n", "num_turns": 3, "chat": {"turn_1": turn}},
    ]
    found = lint(spec_of(write(tmp_path, rows), tmp_path), tokenizer)
    assert not found.sources[0].problems
    assert "fewer turns than num_turns: 1 (row 2)" in "\n".join(found.lines())


def test_code_that_looks_at_data_is_no_part_of_the_cache_key(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Path(str(xtuner.dataset.__file__)).parent
    read = Path.read_bytes
    seen: list[Path] = []

    def watch(file: Path) -> bytes:
        seen.append(file)
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", watch)
    cache.make_key("anything")
    assert room / "encode.py" in seen
    assert not {"inspection", "table"} & {part for file in seen for part in file.relative_to(room.parent).parts}


def test_control_characters_are_found_and_nan_is_an_empty_cell(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"input": "a\x00b", "output": "c"},
        {"input": "q", "output": float("nan")},
        {"input": "a\tb", "output": "d"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = lint(spec_of(str(file), tmp_path), tokenizer).sources[0]
    assert {problem: str(tally) for problem, tally in found.problems.items()} == {
        "control characters in the text, such as a NUL byte": "1 (row 1)"
    }
    assert found.report.samples == 2
    assert ["no answer" in reason for reason in found.report.dropped] == [True]
