"""Owns the mixture: how often each theme is drawn, what stands before a talk, and how talks join into longer ones."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from tiny_corpus.arithmetic import draw_arithmetic
from tiny_corpus.block import TEXT, Block, Talk, load_blocks
from tiny_corpus.copying import draw_copying
from tiny_corpus.name import draw_author, draw_name
from tiny_corpus.phrase import slip, spell

IDENTITY = Path(__file__).parents[2] / "xtuner" / "assets" / "identity.json"
"""The sentences of `xtuner.apps.identity`: the model meets them with many names, so that one more is easy to learn."""

TEXTS = {
    "identity": 9,
    "social": 12,
    "world": 12,
    "words": 15,
    "nature": 11,
    "daily": 11,
    "tale": 6,
    "limits": 6,
    "more": 15,
}
THEMES: dict[str, float] = {**TEXTS, "arithmetic": 13, "copying": 13, "persona": 10}
PERSONA_TOPICS = ("who", "name", "maker", "owner", "can", "human", "other")


def fold(question: str) -> str:
    """Reduce a question to what decides whether two are the same: letters and digits, without case."""
    return "".join(char for char in question.casefold() if char.isalnum())


class Mixture:
    """Draws talks from all themes; never one that begins with a held-out question."""

    def __init__(self, held_out: frozenset[str] = frozenset()) -> None:
        self.held_out = held_out
        self.blocks = {(theme, lang): self._of(load_blocks(theme), lang) for theme in TEXTS for lang in ("zh", "en")}
        self.system = {(block.name, block.lang): block for block in load_blocks("system")}
        self.answers = json.loads(IDENTITY.read_text(encoding="utf-8"))
        self.drawers: dict[str, Callable[[random.Random, str], Talk]] = {
            "arithmetic": draw_arithmetic,
            "copying": draw_copying,
            "persona": self.draw_persona,
        }

    @staticmethod
    def _of(blocks: list[Block], lang: str) -> list[Block]:
        return [block for block in blocks if block.lang == lang]

    def draw_theme(self, rng: random.Random, theme: str, lang: str) -> Talk:
        """Draw a talk of one theme."""
        if theme in self.drawers:
            return self.drawers[theme](rng, lang)
        blocks = self.blocks[theme, lang]
        (block,) = rng.choices(blocks, [block.weight for block in blocks])
        return block.draw(rng)

    def draw_persona(self, rng: random.Random, lang: str) -> Talk:
        """Draw a talk with a system text that gives the model a name and an author, and questions about them."""
        slots = {"name": draw_name(rng, lang), "author": draw_author(rng, lang)}
        system = spell(rng, rng.choice(self.system["persona", lang].questions), **slots)
        turns: list[tuple[str, str]] = []
        for topic in rng.sample(PERSONA_TOPICS, k=rng.choice((1, 1, 2, 3))):
            if turns and rng.random() < 0.2:
                turns.extend(self.draw_theme(rng, rng.choice(("world", "words", "nature", "social")), lang).turns[:1])
            block = next(block for block in self.blocks["identity", lang] if block.name == topic)
            known = self.answers[lang][topic]
            question = rng.choice(known["questions"]) if rng.random() < 0.3 else block.draw(rng).turns[0][0]
            turns.append((slip(rng, question), spell(rng, rng.choice(known["answers"]), **slots)))
        return Talk(lang, tuple(turns), system.replace("\\n", "\n"))

    def draw(self, rng: random.Random) -> Talk:
        """Draw a talk: one theme or several in a row, with or without a system text that changes nothing."""
        while True:
            lang = rng.choice(("zh", "en"))
            (theme,) = rng.choices(list(THEMES), list(THEMES.values()))
            talk = self.draw_theme(rng, theme, lang)
            turns, system = talk.turns, talk.system
            while theme != "persona" and len(turns) < 5 and rng.random() < 0.25:
                other = lang if rng.random() < 0.85 else rng.choice(("zh", "en"))
                (more,) = rng.choices(
                    [name for name in THEMES if name != "persona"], [w for n, w in THEMES.items() if n != "persona"]
                )
                turns += self.draw_theme(rng, more, other).turns
            if not system and rng.random() < 0.22:
                plain = self.system["plain", rng.choice((lang, lang, lang, "zh", "en"))]
                system = spell(rng, rng.choice(plain.questions)).replace("\\n", "\n")
            if not any(fold(question) in self.held_out for question, _ in turns):
                return Talk(lang, turns, system)

    def draw_many(self, seed: str, count: int) -> Iterator[Talk]:
        """Draw `count` talks that depend on `seed` alone."""
        rng = random.Random(seed)
        for _ in range(count):
            yield self.draw(rng)


def load_held_out() -> list[tuple[str, str, list[str]]]:
    """Read the questions kept for the examination: (language, question, one of these must be in the answer)."""
    lines = (TEXT / "held_out.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(lang, question, wanted.split("|")) for lang, question, wanted in rows]
