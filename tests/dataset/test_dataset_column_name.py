"""Tables as people have them: column names in capitals or padded, byte order marks, semicolons, empty rows, sheets."""

import json
from pathlib import Path
from typing import Any

import pytest

from xtuner.config.spec import DataSpec, SourceSpec
from xtuner.conversation.message import Conversation, Message
from xtuner.dataset.encode import to_conversation
from xtuner.dataset.inspection.lint import lint
from xtuner.dataset.inspection.sample import open_sources
from xtuner.dataset.row import BadRow
from xtuner.dataset.table.convert import Reading, convert
from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer

TOKENIZER = Path(__file__).parents[1] / "golden" / "internlm2"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(TOKENIZER))


def data_of(file: Path, **options: Any) -> DataSpec:
    source = SourceSpec(path=str(file), **options)
    return DataSpec(train=[source], template="internlm2_chat", max_length=128)


def read(file: Path, tokenizer: Any, **options: Any) -> list[Conversation]:
    opened = open_sources(data_of(file, **options), tokenizer, seed=0)[0]
    return [to_conversation(opened.job, number, row) for number, row in enumerate(opened.source.rows(), 1)]


def said(file: Path, tokenizer: Any) -> str:
    return "\n".join(lint(data_of(file), tokenizer).lines())


def write_lines(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def test_capitals_and_blanks_in_names(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"Instruction": "q", "Input ": "i", "OUTPUT": 5, "Remark": "x"}]
    file = write_lines(tmp_path / "a.jsonl", *rows)
    talk = [Message("user", "q\ni"), Message("assistant", "5")]
    assert read(file, tokenizer) == [talk]
    assert read(file, tokenizer, format="alpaca") == [talk]
    assert read(file, tokenizer, rename={"Remark": "System"}) == [[Message("system", "x"), *talk]]
    lines = said(file, tokenizer)
    assert "'Instruction' as instruction, 'Input ' as input, 'OUTPUT' as output." in lines
    assert "not used: Remark." in lines


def test_names_that_two_columns_would_share_stay(tmp_path: Path, tokenizer: Any) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"Question": "no", "question": "q", "Answer": "a"})
    assert read(file, tokenizer) == [[Message("user", "q"), Message("assistant", "a")]]
    assert "not used: Question." in said(file, tokenizer)
    both = write_lines(tmp_path / "b.jsonl", {"Question": "x", "QUESTION": "y", "answer": "a"})
    with pytest.raises(UserError, match="the columns Question, QUESTION, answer"):
        read(both, tokenizer)


def test_preferences_and_messages_too(tmp_path: Path, tokenizer: Any) -> None:
    file = write_lines(tmp_path / "p.jsonl", {"Prompt": "p", "Chosen": "a", "Rejected": "b"})
    assert open_sources(data_of(file), tokenizer, seed=0, pairs=True)[0].job.format_name == "preference"
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert len(read(write_lines(tmp_path / "m.jsonl", {"Messages": talk}), tokenizer)[0]) == 2


def test_a_function_of_the_user_gets_the_names_as_they_are(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "own.py").write_text(
        "def read(row):\n    return {'conversation': [{'input': row['Question'], 'output': row['answer']}]}\n"
    )
    file = write_lines(tmp_path / "a.jsonl", {"Question": "q", "answer": "a"})
    assert read(file, tokenizer, format=f"{tmp_path}/own.py:read")[0][0] == Message("user", "q")


def test_columns_are_named_when_nothing_fits(tmp_path: Path, tokenizer: Any) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"Frage": "q", "Antwort": "a"})
    with pytest.raises(UserError, match="the columns Frage, Antwort"):
        read(file, tokenizer)
    found = lint(data_of(file, format="alpaca"), tokenizer)
    with pytest.raises(UserError) as caught:
        found.sources[0].report.need_samples(128)
    assert "The columns are: Frage, Antwort." in str(caught.value.fix)


@pytest.mark.parametrize(
    "table",
    [
        "\ufeffQuestion ;Answer\r\nHi;42\r\n;;\r\nx;y\r\n\r\n".replace(";;", ";"),
        "\n\nquestion,answer\nHi,42\n,\nx,y\n",
        "question\tanswer\t\t\nHi\t42\t\t\nx\ty\t\t\n",
    ],
)
def test_tables_as_programs_write_them(table: str, tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "t.csv").write_bytes(table.encode())
    talks = read(tmp_path / "t.csv", tokenizer)
    assert [[message.text for message in talk] for talk in talks] == [["Hi", "42"], ["x", "y"]]


def test_a_column_without_a_name_is_an_unused_one(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "t.csv").write_text(",question,answer\n0,q,a\n")  # as pandas writes its index
    assert "not used: (no name)." in said(tmp_path / "t.csv", tokenizer)


def test_the_first_sheet_that_is_not_empty(tmp_path: Path, tokenizer: Any) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.create_sheet("Data")
    for row in ([None], ["Question", "Answer", None], ["q", 3.5], [None, None], ["w", 7]):
        sheet.append(row)
    book.save(tmp_path / "t.xlsx")
    talks = read(tmp_path / "t.xlsx", tokenizer)
    assert [talk[1].text for talk in talks] == ["3.5", "7"]
    assert "of 2 sheets only Data was read." in said(tmp_path / "t.xlsx", tokenizer)
    sheet.append(["question", "more"])
    sheet["C2"] = "Answer"
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(UserError, match="two columns of the same name: Answer"):
        read(tmp_path / "t.xlsx", tokenizer)


def test_no_answer_is_no_answer_however_it_is_written(tmp_path: Path, tokenizer: Any) -> None:
    for missing in (None, float("nan")):
        file = write_lines(tmp_path / "a.jsonl", {"instruction": "q", "output": missing})
        with pytest.raises(BadRow, match="no answer in column output"):
            read(file, tokenizer)


@pytest.mark.parametrize("calls", [{"tool_calls": [{"function": {"name": "f"}}]}, {"function_call": {"name": "f"}}])
@pytest.mark.parametrize("content", ["", None, "So:"])
def test_tool_calls_are_refused_not_lost(calls: Any, content: Any, tmp_path: Path, tokenizer: Any) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content, **calls}]
    with pytest.raises(BadRow, match="a tool call"):
        read(write_lines(tmp_path / "m.jsonl", {"messages": talk}), tokenizer)


def test_an_empty_system_text_is_none(tmp_path: Path, tokenizer: Any) -> None:
    talk = [{"from": "system", "value": None}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    file = write_lines(tmp_path / "m.jsonl", {"conversations": talk})
    assert [message.text for message in read(file, tokenizer)[0] if message.text] == ["q", "a"]


@pytest.mark.parametrize("reading", [Reading(), Reading(question="question", answer="ANSWER")])
def test_convert_finds_the_columns_too(reading: Reading, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Question,Answer\nq,a\n")
    with (tmp_path / "o.jsonl").open("wb") as out:
        done = convert(str(tmp_path / "t.csv"), tmp_path / "o.jsonl", out, reading)
    assert done.first == {"conversation": [{"input": "q", "output": "a"}]}
    assert reading.question or "'Question' as question" in done.notes[0]
