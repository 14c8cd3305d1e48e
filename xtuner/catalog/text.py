"""Writes Python text that a person can edit: nested `dict(...)`, short ones in a line, long ones an argument a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 88


@dataclass(frozen=True)
class Call:
    """`dict(name=value, ...)`; a value is a text (written as it is), a `Call` or a list of such."""

    arguments: tuple[tuple[str, Any], ...]
    spread: bool = False
    """An argument a line, however short."""
    comments: tuple[tuple[str, str], ...] = ()
    """Argument -> the comment above it."""


def call(arguments: Sequence[tuple[str, Any] | None], *, spread: bool = False, **comments: str) -> Call:
    """Make a `dict(...)`; None among the arguments is left out."""
    return Call(tuple(one for one in arguments if one is not None), spread, tuple(comments.items()))


def write(value: Any, indent: int = 0, used: int = 0) -> str:
    """Write a value that starts in column `indent` + `used`, followed by at most one letter."""
    if isinstance(value, str):
        return value
    if isinstance(value, Call):
        heads, items, brackets = [f"{name}=" for name, _ in value.arguments], [v for _, v in value.arguments], "dict()"
        opening, closing, spread, comments = "dict(", ")", value.spread, dict(value.comments)
    else:
        heads, items = [""] * len(value), list(value)
        opening, closing, spread, comments = "[", "]", False, {}
        brackets = "[]"
    if not items:
        return brackets
    short = ", ".join(head + write(item) for head, item in zip(heads, items, strict=True))
    fits = indent + used + len(opening) + len(short) + len(closing) + 1 <= WIDTH
    if fits and not spread and "\n" not in short:
        return f"{opening}{short}{closing}"
    inner = " " * (indent + 4)
    lines = []
    for head, item in zip(heads, items, strict=True):
        if comment := comments.get(head.removesuffix("=")):
            lines.append(f"{inner}# {comment}")
        lines.append(f"{inner}{head}{write(item, indent + 4, len(head))},")
    return "\n".join([opening, *lines, f"{' ' * indent}{closing}"])


def assign(name: str, value: Any) -> str:
    """Write `name = value`."""
    return f"{name} = {write(value, 0, len(name) + 3)}"


def texts(name: str, values: Sequence[str]) -> str:
    """Write a list of texts: all in one line inside the brackets when they fit, else a text a line."""
    line = "    " + ", ".join(map(repr, values))
    if len(line) + sum(ord(letter) > 0x2E80 for letter in line) <= WIDTH + 12:
        return f"{name} = [\n{line}\n]"
    return "\n".join([f"{name} = [", *(f"    {value!r}," for value in values), "]"])


def number(value: float) -> str:
    """Write a number as people do: 2e-4, 1e-5, 0.1."""
    if isinstance(value, float) and 0 < value < 1e-3:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return repr(value)
