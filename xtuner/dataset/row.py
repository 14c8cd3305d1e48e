"""Owns what a row that cannot be used is called, and how a column of a row is read."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


class BadRow(Exception):
    """A row that is left out; the text says why, without values of the row, so that equal reasons can be counted."""


def read_text(row: Row, column: str) -> str:
    """Return `column` as text; a missing value (None) is an empty text.

    Raises:
        BadRow: no such column, or it holds a list or an object.
    """
    if column not in row:
        raise BadRow(f"no column {column}")
    return to_text(row[column], column)


def to_text(value: Any, column: str) -> str:
    """Return a plain value as text, None as an empty one.

    Raises:
        BadRow: a list or an object.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list | dict | tuple):
        raise BadRow(f"{column} is not text")
    return str(value)
