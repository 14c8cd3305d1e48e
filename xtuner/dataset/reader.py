"""Owns reading rows out of one file (json, csv, xlsx, parquet, text), one at a time, whatever the size of the file."""

import codecs
import csv
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from xtuner.errors import UserError

SPACE = re.compile(r"[ \t\r\n]*")
BLOCK = 1 << 20
NEAR = 16
"""An error this close to the end of what was read may only mean that more must be read."""


@dataclass
class Progress:
    """How far a reader is, and what a person should know about the file."""

    share: float = 0.0
    """Of the file, 0 to 1."""
    notes: list[str] = field(default_factory=list)


Reader = Callable[[Path, Progress], Iterator[dict[str, Any]]]


def read_json(file: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON list, or of JSON lines, or of objects written one after another.

    Raises:
        UserError: not UTF-8, not JSON (with the line), a row that is no object.
    """
    with file.open("rb") as raw:
        text = _Text(raw, file, progress)
        listed = text.peek() == "["
        if listed:
            text.at += 1
        decoder = json.JSONDecoder()
        first = True
        while (sign := text.peek()) != "":
            if listed and sign == "]":
                text.at += 1
                if text.peek() != "":
                    raise text.error("there is more text after the end of the list")
                return
            if listed and not first:
                if sign != ",":
                    raise text.error("a comma or the closing ] of the list is missing")
                text.at += 1
                if text.peek() == "]":
                    raise text.error("a comma stands before the closing ] of the list")
            first = False
            row = text.value(decoder)
            if not isinstance(row, dict):
                kinds = {list: "a list", str: "a text", type(None): "null"}
                kind = kinds.get(type(row), "a number")
                raise text.error(f"a row must be an object with named columns, this is {kind}", json_itself=False)
            yield row
        if listed:
            raise text.error("the file ends before the list does; it may have been cut short")


class _Text:
    """The text of a JSON file, read block by block; `at` is the place in the block."""

    def __init__(self, raw: BinaryIO, file: Path, progress: Progress) -> None:
        self.raw, self.file, self.progress = raw, file, progress
        self.size = max(1, file.stat().st_size)
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.block, self.at, self.line, self.ended = "", 0, 1, False

    def peek(self) -> str:
        """Skip white space and return the next character, or an empty text at the end of the file."""
        while True:
            if (sign := self.block[self.at : self.at + 1]) > " ":
                return sign
            match = SPACE.match(self.block, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.block):
                return self.block[self.at]
            if not self.more():
                return ""

    def value(self, decoder: json.JSONDecoder) -> Any:
        """Read one JSON value."""
        self.peek()
        while True:
            try:
                value, self.at = decoder.raw_decode(self.block, self.at)
                return value
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.block) - NEAR or error.msg.startswith("Unterminated string")
                if not (cut and self.more()):
                    what = error.msg.removesuffix(" at").removesuffix(" starting")
                    raise self.error(what[0].lower() + what[1:], error.pos) from None
            except RecursionError:
                raise self.error("it is nested too deeply") from None

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        if self.ended:
            return False
        self.line += self.block.count("\n", 0, self.at)
        self.block, self.at = self.block[self.at :], 0
        data = self.raw.read(max(BLOCK, len(self.block)))
        self.ended = not data
        try:
            self.block += self.decode(data, self.ended)
        except UnicodeDecodeError as error:
            line = self.line + self.block.count("\n") + data.count(b"\n", 0, error.start)
            raise not_utf8(self.file, line) from None
        self.progress.share = self.raw.tell() / self.size
        return True

    def error(self, what: str, at: int | None = None, json_itself: bool = True) -> UserError:
        at = self.at if at is None else at
        line = self.line + self.block.count("\n", 0, at)
        column = at - self.block.rfind("\n", 0, at)
        if not json_itself:
            return UserError(f"{self.file}, line {line}: {what}.", "Write every row as {...}.")
        return UserError(
            f"{self.file} is not valid JSON: line {line}, column {column}: {what}.", "Mend that line, then try again."
        )


def read_csv(file: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table with a header line; columns are parted by comma, semicolon or tab.

    Raises:
        UserError: not UTF-8, or a row with more fields than the header.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    size = max(1, file.stat().st_size)
    with file.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        line = 1
        try:
            head = next((words for words in text if words.strip()), "")
            text.seek(0)
            table = csv.reader(text, delimiter=max(",;\t", key=head.count), strict=True)
            header = name_columns(file, next((cells for cells in table if any(cells)), []))
            for cells in table:
                line = table.line_num
                progress.share = raw.tell() / size
                if not any(cells):
                    continue
                if len(cells) > len(header):
                    raise UserError(
                        f"{file}, line {line}: {len(cells)} fields, but the header names {len(header)} columns.",
                        'Put texts that hold the separator into quotes: "...".',
                    )
                yield dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=True))
        except UnicodeDecodeError:
            raise not_utf8(file, line) from None
        except csv.Error as error:
            raise UserError(f"{file}, line {line + 1} is not valid CSV: {error}.", "Mend that line.") from None


def name_columns(file: Path, header: Sequence[Any]) -> list[str]:
    """Return the names of the columns of a table; of several without a name each is called by its number.

    Raises:
        UserError: two have the same name.
    """
    names = ["" if name is None else str(name).strip() for name in header]
    if names.count("") > 1:
        names = [name or f"column {number}" for number, name in enumerate(names, 1)]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise UserError(f"{file} has two columns of the same name: {', '.join(twice)}.", "Rename one.")
    return names


def read_text_lines(file: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield {"text": line} for every line that is not empty.

    Raises:
        UserError: not UTF-8.
    """
    size = max(1, file.stat().st_size)
    line = 0
    with file.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as text:
        try:
            for words in text:
                line += 1
                progress.share = raw.tell() / size
                if words.strip():
                    yield {"text": words.rstrip("\n")}
        except UnicodeDecodeError:
            raise not_utf8(file, line + 1) from None


def read_xlsx(file: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield the rows of the first sheet of an Excel file that is not empty, as texts; its first row names the columns.

    Raises:
        UserError: no Excel file.
    """
    for row in read_cells(file, progress):
        yield {name: _to_text(cell) for name, cell in row.items()}


def read_cells(file: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield the rows of `read_xlsx` with cells as they are: texts, numbers, dates, None for empty ones.

    Raises:
        UserError: no Excel file.
    """
    import openpyxl  # takes 0.3 s, and few need it
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (zipfile.BadZipFile, InvalidFileException, KeyError, OSError) as error:
        raise UserError(f"{file} is not an Excel file that can be read.", "Save it again as .xlsx.") from error
    try:
        for sheet in book.worksheets:
            rows = sheet.iter_rows(values_only=True)
            cells = next((cells for cells in rows if any(cell is not None for cell in cells)), None)
            if cells is not None:
                break
        else:
            return
        if len(book.worksheets) > 1:
            progress.notes.append(f"{file}: of {len(book.worksheets)} sheets only {sheet.title} was read.")
        total = max(1, sheet.max_row or 1)
        named = [at for at, cell in enumerate(cells) if cell is not None and str(cell).strip()]
        header = name_columns(file, [cells[at] for at in named])
        for number, cells in enumerate(rows, 2):
            progress.share = min(1.0, number / total)
            row = {name: cells[at] for name, at in zip(header, named, strict=True) if at < len(cells)}
            if any(cell is not None for cell in row.values()):
                yield row
    finally:
        book.close()


def _to_text(cell: Any) -> str | None:
    """Write a cell as a person would: Excel knows no date without a time of day."""
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, datetime) and cell.time() == time.min:
        return str(cell.date())
    return str(cell)


def read_parquet(file: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file.

    Raises:
        UserError: no Parquet file.
    """
    try:
        with pq.ParquetFile(file) as table:
            total, done = max(1, table.metadata.num_rows), 0
            for batch in table.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
                done += batch.num_rows
                progress.share = done / total
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is not a Parquet file that can be read.", "Write or download it again.") from error


def read_message_lines(file: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yield {"messages": list} for every line of a file whose lines are JSON lists of messages, as InternEvo's are.

    Raises:
        UserError: not UTF-8, or a line that is no JSON list or object.
    """
    for number, row in enumerate(read_text_lines(file, progress), 1):
        try:
            said = json.loads(row["text"])
        except ValueError as error:
            raise UserError(f"{file}, row {number} is not valid JSON: {error}.", "Mend that line.") from None
        if not isinstance(said, list | dict):
            raise UserError(f"{file}, row {number} is no list of messages.", "Write every row as [{...}, ...].")
        yield {"messages": said} if isinstance(said, list) else said


def not_utf8(file: Path, line: int) -> UserError:
    """Say that a file is in another encoding, and how to convert it."""
    with file.open("rb") as raw:
        head = raw.read(1 << 16)
    guess = "GB18030"
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        guess = "UTF-16"
    return UserError(
        f"{file} is not written in UTF-8 (around line {line}).",
        f"Convert it, for instance: iconv -f {guess} -t UTF-8 {file} > utf8{file.suffix}",
    )


READERS: dict[str, Reader] = {
    "json": read_json,
    "csv": read_csv,
    "xlsx": read_xlsx,
    "parquet": read_parquet,
    "text": read_text_lines,
    "messages": read_message_lines,
}
SUFFIXES: dict[str, str] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".xlsx": "xlsx",
    ".parquet": "parquet",
    ".txt": "text",
}
