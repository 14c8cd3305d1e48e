"""Errors that are meant for the person at the keyboard."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: one sentence on what happened, one on what to type.

    `cli` prints both without a traceback and exits with `exit_code`
    (1 for a failure, 2 for words on the command line that cannot be understood).
    """

    def __init__(self, what: str, fix: str = "", exit_code: int = 1) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.what} {self.fix}".strip()


class ForeignCode(UserError):
    """A checkpoint brings program code, which nobody has asked to run; each command has its own way of asking."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a card or on the host (torch has three wordings)."""
    said = str(error).lower()
    signs = ("out of memory", "not enough memory", "allocate memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in said for sign in signs))


def did_you_mean(word: str, known: Iterable[str], limit: int = 3) -> str:
    """Return "Did you mean a, b?" with the names nearest to `word`, or an empty string."""
    by_folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_folded, n=limit, cutoff=0.6)
    return f"Did you mean {', '.join(by_folded[name] for name in near)}?" if near else ""
