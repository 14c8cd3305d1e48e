"""Owns the notation of the text files: blocks of questions and answers with slots, and drawing a talk from one.

table capitals: country, capital      rows follow, indented; fields by commas, rows by semicolons
@zh name weight                       a block begins: language, name, optional weight
from capitals + others                its slots are drawn from tables (or `let a, b: x, y; ...` of its own)
Q: / A:                               question and answer patterns (see `phrase`)
F: / R:                               follow-up question and its reply; {slot'} is a second row of the table
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

from tiny_corpus.phrase import slip, spell

TEXT = Path(__file__).parent / "text"


@dataclass(frozen=True)
class Talk:
    """One conversation: its turns (question, answer) and the system text before them."""

    lang: str
    turns: tuple[tuple[str, str], ...]
    system: str = ""


@dataclass
class Table:
    """Rows of values for slots."""

    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def add(self, text: str, where: str) -> None:
        """Read rows out of one line of text."""
        for row in filter(None, (part.strip() for part in text.split(";"))):
            values = [value.strip() for value in row.split(",")]
            assert len(values) == len(self.columns), f"{where}: {row} has not {len(self.columns)} fields"
            self.rows.append(values)

    def draw(self, rng: random.Random) -> dict[str, str]:
        """Draw a row, and a different second one for the primed slots."""
        one = rng.randrange(len(self.rows))
        two = (one + rng.randrange(1, len(self.rows))) % len(self.rows) if len(self.rows) > 1 else one
        first = dict(zip(self.columns, self.rows[one], strict=True))
        second = {f"{name}'": value for name, value in zip(self.columns, self.rows[two], strict=True)}
        return first | second


@dataclass
class Block:
    """Questions that mean the same, answers that all fit them."""

    lang: str
    name: str
    weight: float
    table: Table | None = None
    questions: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    follow_ups: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)

    def draw(self, rng: random.Random) -> Talk:
        """Draw a talk of one turn, or two where a follow-up is known."""
        slots = self.table.draw(rng) if self.table else {}
        turns = [(self._ask(rng, self.questions, slots), spell(rng, rng.choice(self.answers), **slots))]
        if self.follow_ups and rng.random() < 0.35:
            turns.append((self._ask(rng, self.follow_ups, slots), spell(rng, rng.choice(self.replies), **slots)))
        return Talk(self.lang, tuple(turns))

    def _ask(self, rng: random.Random, patterns: list[str], slots: dict[str, str]) -> str:
        return slip(rng, spell(rng, rng.choice(patterns), **slots))


def read_blocks(text: str, where: str = "text", tables: dict[str, Table] | None = None) -> list[Block]:
    """Read the notation above; `where` names the text in assertions, `tables` are known and get those of the text."""
    tables = {} if tables is None else tables
    blocks: list[Block] = []
    filling: Table | None = None
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{where}:{number}"
        word, _, rest = line.strip().partition(" ")
        if not word or word == "#":
            continue
        if line[0] in " \t":
            assert filling is not None, f"{place}: rows outside a table"
            filling.add(line, place)
            continue
        filling = None
        if word in ("table", "let"):
            names, _, rows = rest.partition(":")
            label, columns = (names, rows) if word == "table" else ("", names)
            filling = Table([name.strip() for name in columns.split(",")])
            if word == "table":
                tables[label.strip()] = filling
            else:
                filling.add(rows, place)
                blocks[-1].table = filling
        elif word.startswith("@"):
            parts = rest.split()
            blocks.append(Block(word[1:], parts[0], float(parts[1]) if len(parts) > 1 else 0.0))
        elif word == "from":
            named = [tables[name.strip()] for name in rest.split("+")]
            blocks[-1].table = Table(named[0].columns, [row for table in named for row in table.rows])
        else:
            kinds = {"Q:": "questions", "A:": "answers", "F:": "follow_ups", "R:": "replies"}
            assert word in kinds, f"{place}: {word} is not known"
            getattr(blocks[-1], kinds[word]).append(rest)
    for block in blocks:
        assert block.questions, f"{where}: {block.name} lacks questions"
        assert block.answers, f"{where}: {block.name} lacks answers"
        assert bool(block.follow_ups) == bool(block.replies), f"{where}: {block.name} has half a follow-up"
        if not block.weight:
            block.weight = 1.0 if block.table is None else len(block.table.rows) ** 0.6
    return blocks


def load_blocks(name: str) -> list[Block]:
    """Read one file of the `text` folder."""
    return read_blocks((TEXT / f"{name}.txt").read_text(encoding="utf-8"), name, load_tables())


def load_tables() -> dict[str, Table]:
    """Read the vocabulary that all files share."""
    tables: dict[str, Table] = {}
    read_blocks((TEXT / "vocabulary.txt").read_text(encoding="utf-8"), "vocabulary", tables)
    return tables
