"""Owns made-up names of every kind that a user may type: Chinese, English, mixed, rare characters, other scripts."""

import random
from pathlib import Path

LISTS = Path(__file__).parent / "text" / "name.txt"


def load_lists() -> dict[str, list[str]]:
    """Read the word lists."""
    lines = [line.partition(": ") for line in LISTS.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    return {name: words.split(" ") for name, _, words in lines}


WORDS = load_lists()
NICKS = ("小", "阿", "大", "老", "")
LOWER, UPPER = list("abcdefghijklmnopqrstuvwxyz"), list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _one(rng: random.Random, name: str) -> str:
    return rng.choice(WORDS[name])


def _chinese(rng: random.Random) -> str:
    kind = rng.random()
    given = "".join(_one(rng, "given") for _ in range(rng.choice((1, 2, 2))))
    if kind < 0.45:
        return _one(rng, "surnames") + given
    if kind < 0.65:
        return rng.choice(NICKS) + given
    if kind < 0.85:
        return given + _one(rng, "titles")
    return "".join(chr(rng.randrange(0x4E00, 0x9FA6)) for _ in range(rng.randint(1, 4)))


def _word(rng: random.Random) -> str:
    word = "".join(_one(rng, "syllables") for _ in range(rng.randint(2, 4)))
    return word.capitalize() if rng.random() < 0.85 else rng.choice((word, word.upper()))


def _english(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.25:
        return _one(rng, "first")
    if kind < 0.5:
        return _word(rng)
    if kind < 0.75:
        return rng.choice((_one(rng, "first"), _word(rng))) + " " + _word(rng)
    if kind < 0.9:
        return rng.choice((_one(rng, "colours"), _one(rng, "first"), _word(rng))) + " " + _one(rng, "nouns")
    particle = ("von", "de", "O'", "of", "&", "Jr.", "III")
    parts = [rng.choice((_one(rng, "first"), _word(rng), _one(rng, "nouns"), rng.choice(particle)))]
    parts += [rng.choice((_word(rng), _one(rng, "nouns"), _one(rng, "first"))) for _ in range(rng.randint(2, 4))]
    return " ".join(parts)


def _other(rng: random.Random) -> str:
    scripts = [WORDS[name] for name in ("kana", "cyrillic", "hangul", "latin", "emoji")]
    letters = rng.choice((*scripts, LOWER, UPPER))
    return "".join(rng.choice(letters) for _ in range(rng.randint(2, 6))).capitalize()


def _mixed(rng: random.Random) -> str:
    parts = [rng.choice((_chinese, _english, _other))(rng) for _ in range(2)]
    joint = rng.choice(("", "", " ", "-", "_", "·", ".", str(rng.randrange(1000)), "@"))
    return joint.join(parts) + rng.choice(
        ("", "", "", str(rng.randrange(10000)), _one(rng, "emoji"), "号", "AI", "-V2", " 3.0", "GPT")
    )


def draw_name(rng: random.Random, lang: str) -> str:
    """Draw a name; most fit the language of the talk, a third is of another kind."""
    kind = rng.random()
    if kind < 0.65:
        return (_chinese if lang == "zh" else _english)(rng)
    if kind < 0.77:
        return (_english if lang == "zh" else _chinese)(rng)
    if kind < 0.93:
        return _mixed(rng)
    return _other(rng)


def draw_author(rng: random.Random, lang: str) -> str:
    """Draw who made an assistant: a person, a team, a place of work."""
    name = draw_name(rng, lang)
    if rng.random() < 0.7:
        return name
    return _one(rng, "teams").format(name) if lang == "zh" else name + " " + _one(rng, "nouns")
