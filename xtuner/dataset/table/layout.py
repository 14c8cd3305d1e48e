"""Owns how rows lie in a file: each kind of file is read and written row by row, and what was read is written alike."""

import codecs
import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from xtuner.dataset.reader import READERS, SUFFIXES, Progress, read_cells
from xtuner.errors import UserError

Row = Mapping[str, Any]
BATCH = 1000


class Writer(ABC):
    """Writes rows to a binary file; the file is complete after `close`."""

    @abstractmethod
    def add(self, row: Row) -> None:
        """Write a row."""

    @abstractmethod
    def close(self) -> None:
        """Write what stands at the end."""


class JsonWriter(Writer):
    """A row per line; with `listed` the lines are a JSON list."""

    def __init__(self, out: IO[bytes], *, listed: bool) -> None:
        self.out, self.listed, self.count = out, listed, 0

    def add(self, row: Row) -> None:
        """Write a row."""
        start = ("[\n" if not self.count else ",\n") if self.listed else ""
        end = "" if self.listed else "\n"
        self.out.write(f"{start}{to_json(row)}{end}".encode("utf-8", "surrogatepass"))
        self.count += 1

    def close(self) -> None:
        """Close the list."""
        if self.listed:
            self.out.write(b"\n]\n" if self.count else b"[]\n")


class CsvWriter(Writer):
    """A table of texts like that of `source`: the same columns, separator and byte order mark."""

    def __init__(self, out: IO[bytes], source: Path) -> None:
        with source.open("rb") as raw:
            head = raw.readline()
        marked = head.startswith(codecs.BOM_UTF8)  # Excel does not read Chinese without it
        self.text = io.TextIOWrapper(out, encoding="utf-8-sig" if marked else "utf-8", newline="")
        line = head.decode("utf-8-sig", "replace")
        self.table = csv.writer(self.text, delimiter=max(",;\t", key=line.count), lineterminator="\n")
        self.begun = False

    def add(self, row: Row) -> None:
        """Write a row, and before the first one the names of the columns."""
        if not self.begun:
            self.table.writerow(row)
            self.begun = True
        self.table.writerow(row.values())

    def close(self) -> None:
        """Leave the file open for whoever gave it."""
        self.text.detach()


class TextWriter(Writer):
    """A text per line."""

    def __init__(self, out: IO[bytes]) -> None:
        self.out = out

    def add(self, row: Row) -> None:
        """Write a line."""
        self.out.write(f"{row['text']}\n".encode())

    def close(self) -> None:
        """Nothing stands at the end."""


class XlsxWriter(Writer):
    """One sheet, its first row the names of the columns."""

    def __init__(self, out: IO[bytes]) -> None:
        import openpyxl  # takes 0.3 s, and few need it

        self.out, self.book = out, openpyxl.Workbook(write_only=True)
        self.sheet = self.book.create_sheet()
        self.begun = False

    def add(self, row: Row) -> None:
        """Write a row, and before the first one the names of the columns."""
        if not self.begun:
            self.sheet.append(list(row))
            self.begun = True
        self.sheet.append(list(row.values()))

    def close(self) -> None:
        """Write the book."""
        self.book.save(self.out)


class ParquetWriter(Writer):
    """Columns of the types that `source` has."""

    def __init__(self, out: IO[bytes], source: Path) -> None:
        self.schema = pq.read_schema(source)
        self.table = pq.ParquetWriter(out, self.schema)
        self.waiting: list[Row] = []

    def add(self, row: Row) -> None:
        """Write a row."""
        self.waiting.append(row)
        if len(self.waiting) == BATCH:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the table of contents."""
        self._flush()
        self.table.close()

    def _flush(self) -> None:
        self.table.write_table(pa.Table.from_pylist(self.waiting, self.schema))
        self.waiting = []


def to_json(row: Row) -> str:
    """Write a row in one line; what JSON has no word for (dates) as text."""
    return json.dumps(row, ensure_ascii=False, default=str)


def kind_of(file: Path) -> str:
    """Return the kind of a file by its name.

    Raises:
        UserError: a kind that is not known.
    """
    kind = SUFFIXES.get(file.suffix.lower())
    if kind is None:
        raise UserError(f"{file} is of a kind that is not known.", f"Kinds that are: {', '.join(SUFFIXES)}.")
    return kind


def read_rows(file: Path, progress: Progress) -> Iterator[Row]:
    """Yield the rows of a file, cells of an Excel file as they are.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    kind = kind_of(file)
    if not file.is_file():
        raise UserError(f"There is no file {file}.", "Check the path.")
    yield from (read_cells if kind == "xlsx" else READERS[kind])(file, progress)


def is_list(file: Path) -> bool:
    """Whether a JSON file is one list, whatever its name says."""
    with file.open("rb") as raw:
        head = raw.read(1 << 16).removeprefix(codecs.BOM_UTF8)
    return head.lstrip()[:1] == b"["


def writer_like(source: Path) -> Callable[[IO[bytes]], Writer]:
    """Return what makes writers of files like `source`."""
    kind = kind_of(source)
    if kind == "json":
        return lambda out: JsonWriter(out, listed=is_list(source))
    if kind == "csv":
        return lambda out: CsvWriter(out, source)
    if kind == "parquet":
        return lambda out: ParquetWriter(out, source)
    return XlsxWriter if kind == "xlsx" else TextWriter


def json_writer(target: Path, out: IO[bytes]) -> JsonWriter:
    """Return a writer for a .json (a list) or .jsonl file.

    Raises:
        UserError: another kind of file.
    """
    if kind_of(target) != "json":
        raise UserError(f"{target}: conversations are written as JSON.", "Name the file .jsonl or .json.", exit_code=2)
    return JsonWriter(out, listed=target.suffix.lower() == ".json")
