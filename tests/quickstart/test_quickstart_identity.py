"""The self-knowledge data: who is in it, what else, and that it is a file any course would accept."""

import json
from pathlib import Path

import pytest

from xtuner.apps.identity import Lang, build_self_knowledge, write_self_knowledge

NAME, AUTHOR = "龘靐 {author} [x]", "Ana-María 🤖 {name}"


def turns(rows: list[dict]) -> list[tuple[str, str]]:
    return [(turn["input"], turn["output"]) for row in rows for turn in row["conversation"]]


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_every_identity_answer_names_name_or_author(lang: Lang) -> None:
    data = build_self_knowledge(NAME, AUTHOR, lang)
    about = [answer for _, answer in turns(data.rows) if NAME in answer or AUTHOR in answer]
    assert len(about) == data.num_identity
    assert len(data.rows) == data.num_identity + data.num_ordinary
    # what a user typed is put in as it is, also where it looks like a slot
    rest = [answer.replace(NAME, "").replace(AUTHOR, "") for answer in about]
    assert not [answer for answer in rest if "{" in answer]
    assert any(NAME in answer and AUTHOR in answer for answer in about)


@pytest.mark.parametrize(("lang", "question"), [("zh", "请介绍一下你自己"), ("en", "Please introduce yourself.")])
def test_the_language_is_kept(lang: Lang, question: str) -> None:
    asked = dict(turns(build_self_knowledge("Zed", "Quill", lang).rows))
    assert "Zed" in asked[question]
    assert "Quill" in asked[question]
    chinese = [text for text, answer in asked.items() if "Zed" in answer and any("一" <= char <= "鿿" for char in text)]
    assert bool(chinese) == (lang == "zh")


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_ordinary_talk_stands_between_and_nothing_comes_twice(lang: Lang) -> None:
    data = build_self_knowledge("Zed", "Quill", lang)
    assert data.num_ordinary > data.num_identity > 150
    questions = [question for question, _ in turns(data.rows)]
    assert len({json.dumps(row) for row in data.rows}) == len(data.rows)
    identity = [question for question, answer in turns(data.rows) if "Zed" in answer or "Quill" in answer]
    assert len(set(identity)) == len(identity)
    assert not set(identity) & (set(questions) - set(identity))
    first, last = questions.index(identity[0]), questions.index(identity[-1])
    assert last - first > len(identity) * 2  # shuffled, not in blocks


def test_the_same_words_give_the_same_rows() -> None:
    assert build_self_knowledge("A", "B", "en").rows == build_self_knowledge("A", "B", "en").rows
    assert build_self_knowledge("A", "B", "en", seed=1).rows != build_self_knowledge("A", "B", "en").rows


def test_the_file_is_a_json_list_in_readable_utf8(tmp_path: Path) -> None:
    data = build_self_knowledge("小林", "林晓", "zh")
    write_self_knowledge(tmp_path / "assistant.json", data)
    text = (tmp_path / "assistant.json").read_text(encoding="utf-8")
    assert json.loads(text) == data.rows
    assert "我是小林，由林晓用 XTuner 微调而成的小助手。" in text
    assert set(data.rows[0]) == {"conversation"}
    assert set(data.rows[0]["conversation"][0]) == {"input", "output"}
