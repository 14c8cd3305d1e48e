"""The script that makes the built-in model: its grammars write what they should, the same every time."""

import random
import re
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def test_patterns_and_slots() -> None:
    from tiny_corpus.phrase import fill, spell

    said = {spell(random.Random(seed), "[a|b[c|d]|]-{x}", x="[y|z]") for seed in range(50)}
    assert said == {"a-[y|z]", "bc-[y|z]", "bd-[y|z]", "-[y|z]"}
    assert fill("{Cat} and {cat'}", {"cat": "a cat", "cat'": "two"}) == "A cat and two"
    with pytest.raises(KeyError):
        fill("{dog}", {"cat": "x"})


def test_blocks() -> None:
    from tiny_corpus.block import read_blocks

    text = "table t: a, b\n  1, one; 2, two\n@en number 2\nfrom t\nQ: What is {a}?\nA: {b}\nF: And {a'}?\nR: {b'}\n"
    (block,) = read_blocks(text)
    words = {"1": "one", "2": "two"}
    talks = [block.draw(random.Random(seed)) for seed in range(200)]
    assert {len(talk.turns) for talk in talks} == {1, 2}
    for talk in talks:
        digits = [re.findall(r"\d", question) for question, _ in talk.turns]
        assert [words[digit[0]] for digit in digits] == [answer for _, answer in talk.turns]
    for bad in ("@en x\nQ: q", "@en x\nA: a", "  1, 2", "@en x\nlet a: 1, 2\nQ: q\nA: a", "@en x\nZ: z"):
        with pytest.raises(AssertionError):
            read_blocks(bad)


def test_talks_depend_on_the_seed_alone_and_spare_the_examination() -> None:
    from tiny_corpus.mixture import Mixture, fold, load_held_out

    held_out = frozenset(fold(question) for _, question, _ in load_held_out())
    assert len(held_out) > 60
    talks = list(Mixture(held_out).draw_many("0", 3000))
    assert talks == list(Mixture(held_out).draw_many("0", 3000))
    assert talks != list(Mixture(held_out).draw_many("1", 3000))
    asked = {fold(question) for talk in talks for question, _ in talk.turns}
    assert not asked & held_out
    assert {talk.lang for talk in talks} == {"zh", "en"}
    assert not [answer for talk in talks for _, answer in talk.turns if not answer.strip()]
    assert 0.1 < sum(bool(talk.system) for talk in talks) / len(talks) < 0.5


def test_sums_are_right() -> None:
    from tiny_corpus.arithmetic import draw_arithmetic, zh_number

    pattern = re.compile(r"(\d+)\s*(plus|minus|times|加|减|乘以|[+×*-])\s*(\d+)\s*(?:is|等于|=)\s*(\d+)")
    signs = {"plus": "+", "加": "+", "minus": "-", "减": "-", "times": "*", "乘以": "*", "×": "*"}
    results = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    seen = 0
    for seed in range(1500):
        rng = random.Random(seed)
        for _, answer in draw_arithmetic(rng, rng.choice(("zh", "en"))).turns:
            for a, sign, b, c in pattern.findall(answer):
                seen += 1
                assert results[signs.get(sign, sign)](int(a), int(b)) == int(c), answer
    assert seen > 500
    assert [zh_number(n) for n in (0, 10, 11, 20, 42)] == ["零", "十", "十一", "二十", "四十二"]


def test_names_are_of_every_kind() -> None:
    from tiny_corpus.name import draw_author, draw_name

    rng = random.Random(0)
    names = [draw_name(rng, lang) for lang in ("zh", "en") for _ in range(1000)]
    assert len(set(names)) > 1500
    assert any(name.isascii() for name in names)
    assert any(ord(char) > 0xFFFF for name in names for char in name)
    assert all(draw_author(rng, "zh") for _ in range(100))


def test_the_tokenizer_settings_are_those_of_the_model(tmp_path: Path) -> None:
    from tiny_model.tokenizer import write_settings

    write_settings(tmp_path, 3584)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        made = TOOLS.parent / "xtuner" / "assets" / "tiny" / name
        assert (tmp_path / name).read_text(encoding="utf-8") == made.read_text(encoding="utf-8")


def test_ordinary_talks_of_the_quickstart_come_from_the_corpus() -> None:
    import json

    from tiny_model.card import ordinary_talks

    made = TOOLS.parent / "xtuner" / "assets" / "ordinary.json"
    assert json.loads(made.read_text(encoding="utf-8")) == ordinary_talks(0)
