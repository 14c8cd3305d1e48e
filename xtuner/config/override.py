"""`key=value` words: what a value means, and how a dotted key is put into a `Table`."""

import re
from typing import Any

from xtuner.config.table import COMMAND_LINE, Table
from xtuner.errors import UserError, did_you_mean

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
WORDS: dict[str, Any] = {"none": None, "null": None, "true": True, "false": False}
BRACKETS = {"[": "]", "(": ")"}


def parse_override(word: str) -> tuple[str, Any]:
    """Split "a.b=1" into its key and value.

    Raises:
        UserError: no `=`, or brackets that do not close (exit code 2).
    """
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{word} is not a setting.", "Settings are written key=value, for example max_length=512.", 2)
    return key.strip(), parse_value(text)


def parse_value(text: str) -> Any:
    """Return what the words mean: numbers, True/False, None, [lists], (tuples), texts.

    `a,b` without a blank is a list. Quotes keep a text a text. These are the meanings that `--cfg-options` of 0.1.x
    had, but blanks inside a text are kept.

    Raises:
        UserError: brackets or quotes that do not close (exit code 2).
    """
    text = text.strip()
    if _is_quoted(text):
        return text[1:-1]
    if text[:1] in BRACKETS:
        if not text.endswith(BRACKETS[text[0]]):
            raise UserError(f"The bracket in {text} does not close.", f"Add {BRACKETS[text[0]]} (and quote it).", 2)
        items = [parse_value(part) for part in split_commas(text[1:-1])]
        return items if text[0] == "[" else tuple(items)
    if "," in text and not re.search(r"\s", text):
        return [parse_value(part) for part in split_commas(text)]
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if NUMBER.fullmatch(text):
        return float(text) if re.search(r"[.eE]", text) else int(text)
    return text


def parse_text(text: str) -> str | None:
    """Return what the words of a setting that is a text mean: None, or all of them without quotes around them."""
    text = text.strip()
    if _is_quoted(text):
        return text[1:-1]
    return None if text.lower() in ("none", "null") else text


def _is_quoted(text: str) -> bool:
    return len(text) >= 2 and text[0] in "'\"" and text[-1] == text[0] and text[0] not in text[1:-1]


def split_commas(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes; an empty last part is dropped."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not parts[-1].strip():
            quote = character
        elif character in "[(":
            depth += 1
        elif character in "])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    if depth or quote:
        raise UserError(f"A bracket or quote in {text} does not close.", "Count the brackets and quotes.", 2)
    return parts if parts[-1].strip() else parts[:-1]


def put_path(values: Table, key: str, value: Any) -> None:
    """Set a dotted key; numbers are places in lists, missing tables on the way are made.

    Raises:
        UserError: the way leads through something that is neither a table nor a list, or past the end of a list.
    """
    *way, last = key.split(".")
    owner: Any = values
    for step, part in enumerate(way):
        passed = ".".join(way[: step + 1])
        if isinstance(owner, dict):
            if owner.get(part) is None:
                put(owner, part, Table(file=values.file, line=COMMAND_LINE))
            owner = owner[part]
        else:
            owner = owner[_place(owner, part, passed)]
        if not isinstance(owner, dict | list):
            raise UserError(f"{key} cannot be set: {passed} is {owner!r}, not a table.", "Check the key.")
    if isinstance(owner, dict):
        put(owner, last, value)
    else:
        owner[_place(owner, last, key)] = value


def put(owner: dict[str, Any], key: str, value: Any) -> None:
    """Set a key that was given on the command line."""
    if isinstance(owner, Table):
        owner.put(key, value, COMMAND_LINE)
    else:
        owner[key] = value


def _place(owner: list[Any], part: str, key: str) -> int:
    if not re.fullmatch(r"-?\d+", part) or not -len(owner) <= int(part) < len(owner):
        places = [str(number) for number in range(len(owner))]
        hint = did_you_mean(part, places) or f"It is a list of {len(owner)}; places count from 0."
        raise UserError(f"{key} cannot be set: there is no place {part}.", hint)
    return int(part)
