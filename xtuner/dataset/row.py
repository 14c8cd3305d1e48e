"""Owns what a row can be beside a conversation, what one that cannot be used is called, and how a column is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xtuner.conversation.message import Conversation, Span

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """A row that says which of two answers is better."""

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True)
class Script:
    """A row that is spelled out already, without a template: spans in turns.

    A turn that does not fit into `max_length` is left out whole, with all that follow it.
    """

    turns: list[list[Span]]


@dataclass(frozen=True)
class Tokens:
    """A row that is tokens already: one or more samples, each the ids and whether each of them is learned."""

    samples: list[tuple[list[int], list[bool]]]


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
    """Return a plain value as text; None and NaN, which pandas writes for empty cells, as an empty one.

    Raises:
        BadRow: a list or an object.
    """
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, list | dict | tuple):
        raise BadRow(f"{column} is not text")
    return str(value)
