"""Owns the self-knowledge data: conversations in which a model says who it is, mixed with ordinary ones."""

import json
import random
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from xtuner.checkpoint.atomic import whole_file

Lang = Literal["zh", "en"]
Row = dict[str, list[dict[str, str]]]

SLOT = re.compile(r"\{(name|author)\}")
GREETING: dict[Lang, str] = {"zh": "你好，", "en": "Hello! "}


@dataclass(frozen=True)
class SelfKnowledge:
    """Rows of the `conversation` format, and how many of them are about whom."""

    rows: list[Row]
    num_identity: int
    num_ordinary: int


def build_self_knowledge(name: str, author: str, lang: Lang, *, seed: int = 0) -> SelfKnowledge:
    """Make the data set that teaches a model its name and its author, in one language.

    Every way of asking that we know gets an answer with `name` and `author` in it. Ordinary conversations of both
    languages, which the built-in model knows already, stand between them: they keep its other answers as they were.
    """
    text = _read("identity.json")[lang]
    words = {"name": name, "author": author}
    identity = [
        _row(question, SLOT.sub(lambda slot: words[slot[1]], answer))
        for topic in text.values()
        for question in _ways(topic["questions"], lang)
        for answer in topic["answers"]
    ]
    ordinary = [_row(question, answer) for pairs in _read("ordinary.json").values() for question, answer in pairs]
    rows = identity + ordinary
    random.Random(seed).shuffle(rows)
    return SelfKnowledge(rows, len(identity), len(ordinary))


def write_self_knowledge(path: Path, data: SelfKnowledge) -> None:
    """Write the rows as the JSON list that courses call assistant.json."""
    with whole_file(path) as file:
        file.write((json.dumps(data.rows, ensure_ascii=False, indent=1) + "\n").encode())


def _ways(questions: list[str], lang: Lang) -> list[str]:
    """Every question as it is, without its mark, and after a greeting."""
    bare = [question.rstrip("？。?.") for question in questions]
    greeted = [GREETING[lang] + question for question in questions if not question.startswith(("你好", "Hello", "Hi"))]
    return list(dict.fromkeys([*questions, *bare, *greeted]))


def _row(question: str, answer: str) -> Row:
    return {"conversation": [{"input": question, "output": answer}]}


def _read(name: str) -> dict[str, Any]:
    return json.loads((files("xtuner") / "assets" / name).read_text(encoding="utf-8"))
