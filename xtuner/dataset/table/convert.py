"""Owns the conversion of any table to conversations in the form of 0.1.x, which every version trains on."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from xtuner.config.choice import pick
from xtuner.config.spec import SourceSpec
from xtuner.conversation.message import Conversation, Message
from xtuner.dataset import FORMATS
from xtuner.dataset.formats.column import talk
from xtuner.dataset.formats.recognise import fold_columns, recognise
from xtuner.dataset.formats.turn import from_turns, to_turns
from xtuner.dataset.progress import show_progress
from xtuner.dataset.report import Tally, render_folded
from xtuner.dataset.row import BadRow, read_text, to_text
from xtuner.dataset.source import open_source
from xtuner.dataset.table.layout import Row, json_writer
from xtuner.errors import UserError, did_you_mean

LOOKED_AT = 100
"""Rows that are read to learn the columns and the format."""


@dataclass(frozen=True)
class Reading:
    """How rows become conversations: two columns, or a format (of `FORMATS`, or `file.py:function`)."""

    question: str | None = None
    answer: str | None = None
    format: str | None = None
    system: str = ""
    """A system text for conversations without one."""


@dataclass
class Converted:
    """What became of the rows."""

    format: str
    rows: int = 0
    written: int = 0
    first: dict[str, Any] | None = None
    """The first row as it was written."""
    skipped: dict[str, Tally] = field(default_factory=dict)
    """Why rows were left out -> which ones."""
    notes: list[str] = field(default_factory=list)


def convert(source: str, target: Path, out: IO[bytes], reading: Reading) -> Converted:
    """Write the rows of `source` to `out` as `{"conversation": [{"system", "input", "output"}, ...]}`.

    `target` names the file that `out` is: .json gets a list, .jsonl a row per line.

    Raises:
        UserError: a column or layout that is not there (lists what is), or no row that can be used.
    """
    writer = json_writer(target, out)
    rows = open_source(SourceSpec(path=source))
    samples = list(islice(rows.rows(), LOOKED_AT))
    if not samples:
        raise UserError(f"{source} holds no rows.", "Give a file with rows in it.")
    folded: dict[str, str] = {}
    if reading.question is not None and reading.answer is not None:
        asked, answered = (_find_column(source, samples, name) for name in (reading.question, reading.answer))
        reading = dataclasses.replace(reading, question=asked, answer=answered)
        name = f"{asked} -> {answered}"
    else:
        folded = fold_columns(samples) if reading.format is None or reading.format in FORMATS else {}
        name = reading.format or recognise([_rename(row, folded) for row in samples], source)
    result = Converted(name)
    read = None if reading.question is not None else pick(FORMATS, name, "row format")
    with show_progress(f"Converting {source}") as show:
        for number, row in enumerate(rows.rows(), 1):
            result.rows = number
            try:
                said = _read_columns(row, reading) if read is None else _read(read, _rename(row, folded))
                record = _to_record(said, reading.system)
            except BadRow as reason:
                result.skipped.setdefault(str(reason), Tally()).add(number)
                continue
            writer.add(record)
            result.written += 1
            result.first = result.first or record
            show(rows.progress.share)
    result.notes = [*([render_folded(folded)] if folded else []), *rows.progress.notes]
    if not result.written:
        why = "; ".join(f"{reason}: {tally}" for reason, tally in result.skipped.items())
        raise UserError(
            f"None of the {result.rows:,} rows of {source} can be used: {why}.",
            "Name the columns with --question and --answer.",
        )
    writer.close()
    return result


def _find_column(source: str, samples: list[dict[str, Any]], name: str) -> str:
    """Return the column called `name`; capitals and white space at its edges may differ where one column fits.

    Raises:
        UserError: there is none.
    """
    found = list(dict.fromkeys(str(name) for sample in samples for name in sample))
    alike = [other for other in found if other.strip().lower() == name.strip().lower()]
    if name not in found and len(alike) != 1:
        hint = did_you_mean(name, found)
        raise UserError(f"{source} has no column {name}.", f"It has: {', '.join(found)}.{' ' if hint else ''}{hint}")
    return name if name in found else alike[0]


def _rename(row: Row, names: Mapping[str, str]) -> Row:
    return {names.get(name, name): value for name, value in row.items()} if names else row


def _read_columns(row: Row, reading: Reading) -> Conversation:
    """Read the two columns, and `system` where there is one."""
    assert reading.question is not None
    assert reading.answer is not None
    asked, answered = read_text(row, reading.question).strip(), read_text(row, reading.answer).strip()
    if not asked:
        raise BadRow(f"nothing in column {reading.question}")
    if not answered:
        raise BadRow(f"nothing in column {reading.answer}")
    return talk(asked, answered, to_text(row.get("system"), "system"))


def _read(read: Any, row: Row) -> Conversation:
    result = read(row)
    if isinstance(result, Mapping):  # a function of the user's, as 0.1.x wanted it
        return from_turns(result.get("conversation") or [])
    return list(result)


def _to_record(conversation: Conversation, system: str) -> dict[str, Any]:
    if system and not any(message.role in ("system", "text") for message in conversation):
        conversation = [Message("system", system), *conversation]
    turns = to_turns(conversation)
    if not any(turn["output"].strip() for turn in turns):
        raise BadRow("no answer")
    return {"conversation": turns}
