"""`Table`: a dict that remembers where each of its keys was written, so that errors can say file and line."""

from collections.abc import Mapping
from typing import Any

COMMAND_LINE = 0
"""The "line" of a key that was given on the command line."""


class Table(dict[str, Any]):
    """A dict of a config. `file` is where it was read, `line` where it begins, `lines` where each key stands."""

    def __init__(
        self, values: Mapping[str, Any] = {}, *, file: str = "", line: int = -1, lines: Mapping[str, int] = {}
    ) -> None:
        super().__init__(values)
        self.file = file
        self.line = line
        self.lines: dict[str, int] = dict(lines)

    def where(self, key: str | None = None) -> str:
        """Return "file:line" of a key, or of the table itself, as precisely as it is known."""
        line = self.lines.get(key, self.line) if key is not None else self.line
        if line == COMMAND_LINE:
            return "the command line"
        return f"{self.file}:{line}" if line > 0 else self.file

    def put(self, key: str, value: Any, line: int) -> None:
        """Set a key and remember where."""
        self[key] = value
        self.lines[key] = line

    def join(self, other: Mapping[str, Any]) -> None:
        """Take all keys of `other`, with their lines when it is a `Table`."""
        self.update(other)
        if isinstance(other, Table):
            self.lines.update({key: other.lines.get(key, other.line) for key in other})

    def copy(self) -> "Table":
        """Return a table of its own with the same values and lines."""
        return Table(self, file=self.file, line=self.line, lines=self.lines)
