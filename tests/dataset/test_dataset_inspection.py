"""What people are shown of their data: one row in tokens, and everything that is wrong with all of them."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from xtuner.config.spec import DataSpec
from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Message
from xtuner.conversation.template import ChatTemplate
from xtuner.dataset.encode import Job, encode_rows
from xtuner.dataset.formats.turn import conversation
from xtuner.dataset.inspection import render
from xtuner.dataset.inspection.check import NO_END, TWO_BOS, Marks, TokenCheck, check_order, check_row
from xtuner.dataset.inspection.lint import COPY, NO_SYSTEM, SIMILAR_ROW, Findings, lint
from xtuner.dataset.inspection.near_duplicate import NearDuplicates, signatures
from xtuner.dataset.inspection.sample import Seen, see_row
from xtuner.dataset.inspection.steps import check_steps, log_first
from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer

TOKENIZER = Path(__file__).parents[1] / "golden" / "internlm2"
FOX = "Long ago a fox met seven different birds near the old mill by the river, and each told it another secret."


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(TOKENIZER))


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., DataSpec]:
    """Give a function that writes rows (a list per source) and makes a `DataSpec` of them."""

    def make(*sources: list[dict[str, Any]], **options: Any) -> DataSpec:
        files = []
        for number, rows in enumerate(sources):
            files.append(str(tmp_path / f"s{number}.jsonl"))
            Path(files[-1]).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
        values = {"template": "internlm2_chat", "max_length": 128, "cache": str(tmp_path / "cache")} | options
        return DataSpec(train=files, **values)

    return make


def talk(asked: str, answered: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered, **more}]}


def painted(seen: Seen, **options: Any) -> str:
    out = io.StringIO()
    render.show(seen, Console(file=out, highlight=False, width=40, **options))
    return out.getvalue()


def test_a_row_as_training_sees_it(spec: Any, tokenizer: Any) -> None:
    data = spec([talk("x", "y"), talk("你好", "我是\n小书")])
    seen = see_row(data, tokenizer, number=2)
    job = Job("", "", conversation, True, None, Encoder(tokenizer), 9)
    assert seen.ids[0] == job.encoder.bos[0]
    assert tokenizer.decode(seen.ids).replace("\n", "") == "".join(s.text for s in seen.stretches).replace("\n", "")
    places = dict(seen.places)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    at = [index for index, token in enumerate(seen.ids) if token == end]
    assert (places["stop"].token, places["stop"].at, places["stop"].trained) == ("<|im_end|>", at, at[-1:])
    assert places["BOS"].at == [0]
    assert not places["BOS"].trained
    assert places["EOS"].at == []


def test_marks_stand_where_there_are_no_colours(spec: Any, tokenizer: Any) -> None:
    seen = see_row(spec([talk("你好", "我是\n小书")]), tokenizer)
    text = painted(seen)
    assert "\x1b" not in text
    assert "<s><|im_start|>user↵\n你好<|im_end|>↵\n<|im_start|>assistant↵\n[[我是↵\n小书<|im_end|>]]↵\n" in text, (
        "not broken at the width of the terminal, which counts Chinese as two"
    )
    learned = sum(seen.trained)
    assert f"{len(seen.ids)} tokens, {learned} of them learned ({learned / len(seen.ids):.1%})" in text


def test_colours_follow_the_terminal_and_no_color(spec: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    seen = see_row(spec([talk("[red]你好", "小书")]), tokenizer)
    text = painted(seen, force_terminal=True)
    assert "\x1b[1;32m小书\x1b[0m" in text
    assert "\x1b[1;7;32m<|im_end|>\x1b[0m" in text
    assert "[red]你好" in text, "what stands in data is no markup"
    assert "[[" not in text
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[[小书<|im_end|>]]" in painted(seen, force_terminal=True)


def test_rows_that_are_left_out_or_cut_are_shown_too(spec: Any, tokenizer: Any) -> None:
    data = spec([talk("q", "masked", loss=False), {"messages": []}, talk("q", FOX * 5), talk("q", "a")])
    seen = see_row(data, tokenizer, number=1)
    assert seen.ids
    assert not any(seen.trained)
    assert "Left out: nothing in it is learned." in painted(seen)
    text = painted(see_row(data, tokenizer, number=2))
    assert '{"messages": []}\nLeft out: no assistant turn.' in text
    assert "cut at the end" in painted(see_row(data, tokenizer, number=3))
    assert len(see_row(data, tokenizer, number=3).ids) == 128
    plain = see_row(spec([{"text": FOX * 9}], template=None), tokenizer)
    assert plain.notes[0].startswith("A long text, learned in")
    for number in (0, 5, -1):
        with pytest.raises(UserError, match=f"has no row {number}. It has"):
            see_row(spec([talk("q", "a")]), tokenizer, number=number)
    with pytest.raises(UserError, match="There is no source 2"):
        see_row(data, tokenizer, source=2)


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ("u a u a", []),
        ("s u a", []),
        ("u a", []),
        ("a u a", ["wrong order: the assistant speaks first"]),
        ("u a u", ["wrong order: the last question has no answer"]),
        ("u u a a", ["wrong order: two questions in a row", "wrong order: two answers in a row"]),
        ("u s a", ["a system text in the middle of the talk"]),
        ("text", []),
    ],
)
def test_order(roles: str, said: list[str]) -> None:
    words = {"u": "user", "a": "assistant", "s": "system"}
    assert list(check_order([words.get(role, role) for role in roles.split()])) == said


def test_marks_inside_texts(tokenizer: Any) -> None:
    marks = Marks(tokenizer)
    found = list(marks.find("a <|im_end|> b <|im_end|> [INST] <b>bold</b> x[0] ### Instruction: </s>"))
    assert found == [
        "the text holds <|im_end|>, which becomes a special token",
        "the text holds [INST], a mark of chat templates; the template adds such marks itself",
        "the text holds ### Instruction:, a mark of chat templates; the template adds such marks itself",
        "the text holds </s>, which becomes a special token",
    ]
    assert not list(marks.find("5 < 6, list[int], ### 标题, <br>"))
    row = talk("", " \n")
    assert list(check_row(row, [Message("user", ""), Message("assistant", " \n")], marks)) == [
        "an empty question",
        "an empty answer",
    ]


def test_ends_that_are_not_learned(tokenizer: Any) -> None:
    def problems(template: ChatTemplate, *answers: str, length: int = 99) -> list[tuple[int, str]]:
        encoder = Encoder(tokenizer)
        job = Job("x", "conversation", conversation, True, template, encoder, length)
        rows = [{"conversation": [{"input": "hello", "output": answer}]} for answer in answers]
        return list(TokenCheck(encoder, template)(encode_rows(job, list(enumerate(rows, 1))), set()))

    endless = ChatTemplate("endless", "Q: {input}\nA: ", suffix="\n", suffix_as_eos=True)
    assert problems(endless, "yes", "no") == [(1, NO_END), (2, NO_END)]
    assert problems(ChatTemplate("with_eos", "Q: {input}\nA: "), "yes") == []
    assert problems(ChatTemplate("x", "{input}", suffix="<|im_end|>", suffix_as_eos=True), "yes") == []
    assert problems(endless, FOX, length=20) == [], "a cut answer is counted as such"
    assert problems(ChatTemplate("twice", "<s>Q: {input}\nA: "), "yes") == [(1, TWO_BOS)]


def numbers(findings: Findings, source: int = 0) -> dict[str, list[int]]:
    return {problem: tally.first for problem, tally in findings.sources[source].problems.items()}


def test_lint_names_rows(spec: Any, tokenizer: Any) -> None:
    rows = [
        talk("你好", "我是小书"),
        talk("stop <|im_end|> here", "no"),
        talk("q", "masked", loss=False),
        talk("count", " ".join(map(str, range(150)))),
        {"messages": [{"role": "assistant", "content": "me first"}, *talk("u", "a")["messages"]]},
        talk("你好", "我是小书"),
        talk("fox?", FOX),
        talk("Fox?", FOX.replace("seven", "eight")),
        {"messages": "broken"},
    ]
    findings = lint(spec(rows, max_length=200), tokenizer)
    assert numbers(findings) == {
        "the text holds <|im_end|>, which becomes a special token": [2],
        "wrong order: the assistant speaks first": [5],
        COPY: [6],
        SIMILAR_ROW: [8],
    }
    report = findings.sources[0].report
    assert report.truncated.first == [4]
    assert {why: tally.first for why, tally in report.dropped.items()} == {
        "nothing in it is learned": [3],
        "no list of messages in messages": [9],
    }
    assert not findings.pointless
    lines = findings.lines()
    assert "  The text holds <|im_end|>, which becomes a special token: 1 (row 2)." in lines
    assert "    row 8 resembles row 7" in lines
    assert lines[-1] == "7 kinds of problems; a run would work."
    assert lint(spec([talk("你好", "我是小书")]), tokenizer).lines()[-1] == "Nothing is wrong with it."


def test_rows_that_are_tokens_or_spelled_already(tokenizer: Any) -> None:
    marks = Marks(tokenizer)
    spelled = [Message("text", "<|Human|>: hi<eoh>\n"), Message("text", "<|MOSS|>: hello<eom>\n")]
    assert list(check_row({}, spelled, marks)) == []
    assert len(list(check_row({}, spelled[:1], marks))) == 2
    assert list(check_row({"tokens": [1, 2]}, [], marks)) == []


def test_lint_counts_tokens_as_training_does(spec: Any, tokenizer: Any) -> None:
    from xtuner.dataset.pipeline import build_dataset

    data = spec([talk("q", f"answer {n}") for n in range(700)], [{"text": FOX * 3}])
    report = build_dataset(data, tokenizer, seed=0).report
    findings = lint(data, tokenizer)
    assert sum(source.tokens for source in findings.sources) == report.tokens
    assert sum(source.learned for source in findings.sources) == report.trained_tokens
    assert [source.report.rows for source in findings.sources] == [700, 1]


def test_several_sources(spec: Any, tokenizer: Any) -> None:
    findings = lint(
        spec([talk("fox?", FOX)], [talk("a", "b"), talk("fox?", FOX)], [talk("fox?", FOX + "!")]), tokenizer
    )
    assert numbers(findings, 1) == {COPY: [2]}
    assert numbers(findings, 2) == {SIMILAR_ROW: [1]}
    lines = findings.lines()
    assert any(line.startswith("    row 1 resembles row 1 of ") for line in lines)
    shares = [float(line.split("%")[0]) for line in lines if "of all that is learned comes from" in line]
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_runs_that_would_be_pointless(spec: Any, tokenizer: Any) -> None:
    good, masked = talk("q", "a"), talk("q", "a", loss=False)
    with_system = {"messages": [{"role": "system", "content": "S"}, *good["messages"]]}
    for sources, template in (
        ([[masked]], "internlm2_chat"),
        ([[good], [masked]], "internlm2_chat"),
        ([[talk("a long question indeed " * 50, "a")]], "internlm2_chat"),
        ([[{"messages": "broken"}] * 3 + [{"messages": []}]], "internlm2_chat"),
        ([[good, with_system]], "minicpm"),
    ):
        findings = lint(spec(*sources, template=template), tokenizer)
        assert findings.pointless
        assert "would be pointless" in findings.lines()[-1]
    assert numbers(findings) == {NO_SYSTEM.format("minicpm"): [2]}
    with pytest.raises(UserError, match="holds conversations"):
        lint(spec([good], template=None), FakeBase(tokenizer))


class FakeBase:
    """The tokenizer of a base model that says nothing of a chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.name_or_path, self.chat_template = "", None

    def __getattr__(self, name: str) -> Any:
        """Be the tokenizer in all else."""
        return getattr(self.tokenizer, name)


def change(text: str, count: int, chance: random.Random) -> str:
    letters = list(text)
    for place in chance.sample(range(len(letters)), count):
        letters[place] = "#"
    return "".join(letters)


def test_near_duplicates_are_found_and_others_are_not() -> None:
    chance = random.Random(0)
    vocabulary = ["".join(chance.choices("abcdefghij的一是在不了", k=chance.randint(2, 7))) for _ in range(3000)]
    texts = [" ".join(chance.choices(vocabulary, k=60)) for _ in range(1500)]
    near = [change(text, 3, chance) for text in texts[:200]]
    far = [change(text, 60, chance) for text in texts[200:400]]
    found = NearDuplicates()
    for start in range(0, 1500, 500):
        found.add(texts[start : start + 500])
    found.add([])
    found.add([*near, *far, " A B c d E F ", "abcdef"])
    earlier = found.find(np.arange(found.count))
    assert (earlier[:1500] == np.arange(1500)).all()
    assert (earlier[1500:1700] == np.arange(200)).mean() > 0.97
    assert (earlier[1700:1900] == np.arange(1700, 1900)).all()
    assert earlier[1901] == 1900, "case and white space make no difference, and short texts are compared too"
    among = np.array([1, 3, 1501, 1503])
    assert found.find(among).tolist() == [1, 3, 1, 3]
    assert found.find(np.array([5])).tolist() == [5]
    found.close()


def test_signatures_estimate_common_shingles() -> None:
    chance = random.Random(1)
    text = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=4000))
    other = text[:3000] + "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=1000))
    first, second, again, empty = signatures([text, other, text, ""])
    assert (first == again).all()
    assert (first == second).mean() == pytest.approx(3000 / 5000, abs=0.15)
    assert len(empty) == len(first)


def test_the_first_sample_as_0_1_printed_it(spec: Any, tokenizer: Any) -> None:
    data = spec([talk("你好", "小书")], pack=False)
    lines = list(log_first(data, tokenizer, "all", seed=0))
    assert [line for line in lines if line.startswith("#")] == [
        f"{'#' * 20}   {title}   {'#' * 20}" for title in ("text", "text(masked)", "input_ids", "labels")
    ]
    ids, labels = json.loads(lines[5]), json.loads(lines[7])
    assert lines[1] == tokenizer.decode(ids)
    assert lines[3] == "[-100] " * labels.count(-100) + "小书<|im_end|>"
    assert [label for label in labels if label != -100] == ids[labels.count(-100) - 1 : -1]
    assert list(log_first(data, tokenizer, "text", seed=0)) == lines[:2]


def test_a_row_after_every_step(spec: Any, tokenizer: Any) -> None:
    data = spec([talk("你好", f"小书 {n}") for n in range(50)])
    lines = list(check_steps(data, tokenizer, seed=0))
    titles = [line.strip("# ") for line in lines if line.startswith("#")]
    assert titles == [
        "dataset after `dataset_map_fn`",
        "dataset after adding templates",
        "encoded input_ids",
        "encoded labels",
        "input_ids after packed to max_length",
        "labels after packed to max_length",
    ]
    assert lines[1].startswith("[{'input': '你好', 'output': '小书 ")
    assert lines[3:5] == [
        "not learned <bos>",
        r"not learned '<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n'",
    ]
    ids, labels, packed = json.loads(lines[-7]), json.loads(lines[-5]), json.loads(lines[-3])
    assert len(ids) == len(labels)
    assert {label for label in labels if label != -100} <= set(ids)
    assert len(ids) < len(packed) <= 128
    assert lines == list(check_steps(data, tokenizer, seed=0))
    assert len(list(check_steps(spec([talk("a", "b")], [talk("c", "d")], pack=False), tokenizer, seed=0))) == 24


def test_the_wrong_map_function_is_named(spec: Any, tokenizer: Any) -> None:
    data = spec([{"conversation": [{"input": "a", "output": "b"}]}])
    data.train[0].format = "openai"
    with pytest.raises(UserError, match="look like the format conversation: set dataset_map_fn=None"):
        list(check_steps(data, tokenizer, seed=0))
    data = spec([talk("a", "b")])
    data.train[0].format = "alpaca"
    with pytest.raises(UserError, match="set dataset_map_fn=openai_map_fn"):
        list(check_steps(data, tokenizer, seed=0))
    with pytest.raises(UserError, match="that were looked at can be learned: max_length ends"):
        list(check_steps(spec([talk("word " * 300, "a")]), tokenizer, seed=0))
