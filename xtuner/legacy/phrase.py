"""One `dict(type=word, ...)` of a config, whose arguments are taken one by one; what is left over is an error."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xtuner.config.ref import Ref
from xtuner.config.table import Table
from xtuner.errors import UserError, did_you_mean
from xtuner.legacy.harmless import HARMLESS
from xtuner.legacy.vocabulary import WORDS, dotted, word_of

Tell = Callable[[str], None]
"""Says a sentence to the person whose config it is."""


class Phrase:
    """A table that is being translated. `word` is its type, or for a table without a type the name it has."""

    def __init__(self, table: Table, word: str, path: str) -> None:
        self.table = table
        self.word = word
        self.role = word
        """Whose arguments it takes, where several words take the same."""
        self.path = path
        self._asked: dict[str, None] = {}

    def where(self, name: str | None = None) -> str:
        """Return "file:line" of an argument."""
        return self.table.where(name)

    def line(self, name: str) -> int:
        """Return the line of an argument."""
        return self.table.lines.get(name, self.table.line)

    def take(self, name: str, default: Any = None) -> Any:
        """Return an argument."""
        self._asked[name] = None
        return self.table.get(name, default)

    def number(self, name: str, default: float) -> float:
        """Return an argument that is a number; None counts as not given.

        Raises:
            UserError: it is something else.
        """
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(
                f"{self.where(name)}: {name} is {short(value)}; it must be a number.", f"Write {name}={default:g}."
            )
        return float(value)

    def need(self, name: str) -> Any:
        """Return an argument that must be there.

        Raises:
            UserError: it is missing; names a misspelling.
        """
        self._asked[name] = None
        if name in self.table:
            return self.table[name]
        wrong = [given for given in self.table if did_you_mean(given, [name])]
        fix = f"Did you write {wrong[0]} for {name}?" if wrong else f"Add {name}=..."
        where = self.where(wrong[0]) if wrong else self.where()
        raise UserError(f"{where}: {self.word} needs {name}.", fix)

    def move(self, name: str, into: Table, key: str, *, default: Any = None) -> None:
        """Put an argument under `key` of the spec, with its line; nothing when it is not given."""
        if name in self.table:
            into.put(key, self.take(name), self.line(name))
        else:
            self._asked[name] = None
            if default is not None:
                into.put(key, default, self.table.line)

    def only(self, name: str, *usual: Any, fix: str) -> None:
        """Take an argument that may be given, but with a usual value alone.

        Raises:
            UserError: another value.
        """
        value = self.take(name, usual[0])
        if value not in usual:
            raise UserError(f"{self.where(name)}: {name}={short(value)} cannot be followed.", fix)

    def phrase(self, name: str, *words: str) -> "Phrase | None":
        """Return a nested `dict(type=one of words, ...)`, None when it is absent or None.

        Raises:
            UserError: not a dict, or another word.
        """
        value = self.take(name)
        if value is None:
            return None
        return as_phrase(value, words, f"{self.path}.{name}" if self.path else name, self.where(name))

    def part(self, name: str) -> "Phrase | None":
        """Return a nested dict without a type, None when it is absent or None."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, Table):
            raise UserError(f"{self.where(name)}: {name} is {value!r}; it must be a dict.", f"Write {name}=dict(...).")
        return Phrase(value, name, f"{self.path}.{name}" if self.path else name)

    def done(self) -> None:
        """Refuse what nobody has asked for.

        Raises:
            UserError: an argument that the word does not have (with the nearest).
        """
        harmless = {argument for word, argument in HARMLESS if word == self.role}
        for name in self.table:
            if name in self._asked or name in harmless or name in ("type", "_delete_", "_scope_"):
                continue
            known = [*self._asked, *harmless]
            hint = did_you_mean(name, known) or f"Known: {', '.join(sorted(known))}."
            raise UserError(f"{self.where(name)}: {self.word} has no argument {name} here.", hint)


def as_phrase(value: Any, words: Sequence[str], path: str, where: str) -> Phrase:
    """Make a phrase of a `dict(type=one of words, ...)`.

    Raises:
        UserError: not a dict, no type, a word that is not known or belongs elsewhere.
    """
    if not isinstance(value, Table):
        raise UserError(f"{where}: {path} is {short(value)}; it must be a dict(type=...).", expect(words))
    if "type" not in value:
        expected = " or ".join(words)
        raise UserError(f"{value.where()}: {path} has no type.", f"Add type={expected}." if words else "")
    word = word_of(value["type"])
    place = value.where("type")
    if word is None:
        name = dotted(value["type"]) or short(value["type"])
        hint = did_you_mean(name.rsplit(".", 1)[-1], words) or did_you_mean(name, WORDS)
        raise UserError(f"{place}: {name} is not a word that is known for {path}.", hint or expect(words))
    if words and word not in words:
        raise UserError(f"{place}: {word} does not belong at {path}.", expect(words))
    return Phrase(value, word, path)


def expect(words: Sequence[str]) -> str:
    """Say which words fit."""
    return f"Known there: {', '.join(words)}." if words else ""


def short(value: Any) -> str:
    """Show a value in at most 60 letters."""
    text = repr(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def to_plain(value: Any) -> Any:
    """Return a value with imported names as dotted texts, as a dump has them."""
    if isinstance(value, Ref):
        return value.path
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value
