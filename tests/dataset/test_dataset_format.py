"""Row formats give what 0.1.x's map functions gave (goldens made by 0.1.21)."""

import json
from pathlib import Path
from typing import Any

import pytest

from xtuner.config.choice import pick
from xtuner.conversation.builtin import SYSTEMS
from xtuner.conversation.message import Conversation, Message
from xtuner.dataset import FORMATS
from xtuner.dataset.formats.recognise import recognise
from xtuner.dataset.row import BadRow
from xtuner.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "xtuner_data" / "expected_map_fns.json"
CASES: dict[str, list[dict[str, Any]]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
OWN_WORDS = "(system text, own words)"
# keys of compat/formats.md, section 2
KEYS = {
    *("alpaca", "alpaca_zh", "arxiv", "code_alpaca", "colors", "crime_kg_assitan", "default", "law_reference"),
    *("llava_image_only", "llava", "medical", "msagent_react", "oasst1", "openai", "openorca", "pretrain", "sql"),
    *("stack_exchange", "tiny_codes", "wizardlm"),
}


def read(name: str, row: dict[str, Any]) -> Conversation:
    return pick(FORMATS, name, "row format")(row)


def to_turns(talk: Conversation) -> list[dict[str, Any]]:
    """Back to 0.1.x turns, as the goldens have them."""
    turns: list[dict[str, Any]] = []
    open_turn = {"system": "", "input": ""}
    for message in talk:
        if message.role in ("system", "user"):
            open_turn["system" if message.role == "system" else "input"] += message.text
        elif message.role == "text":
            turns.append({"system": "", "input": "", "output": message.text, "need_eos_token": False})
        else:
            turns.append({**open_turn, "output": message.text})
            open_turn = {"system": "", "input": ""}
    assert open_turn == {"system": "", "input": ""}
    return turns


@pytest.mark.parametrize("name", sorted(CASES))
def test_formats_give_the_golden_turns(name: str) -> None:
    for case in CASES[name]:
        try:
            turns = to_turns(read(name, case["in"]))
        except BadRow:
            turns = []
        expected = [{"system": "", "input": "", **turn} for turn in case["out"]["conversation"]]
        for ours, theirs in zip(turns, expected, strict=True):
            if theirs["system"] == OWN_WORDS:
                assert ours["system"]
                theirs = {**theirs, "system": ours["system"]}
            assert ours == theirs


def test_the_table_holds_every_key_of_0_1() -> None:
    assert len(KEYS) == 20
    assert set(CASES) == KEYS
    assert set(FORMATS) - KEYS == {
        *("conversation", "pair", "sharegpt", "text"),
        *("internevo", "internevo_messages", "moss", "tokens"),
    }
    assert all(callable(pick(FORMATS, name, "row format")) for name in FORMATS)


def test_conversation_takes_missing_and_none() -> None:
    turns = [
        {"input": "a", "output": "b", "system": "S", "output_with_loss": False},
        {"input": None, "output": "c", "system": None, "output_with_loss": None, "sep": "x"},
        {"output": ""},
        {"input": "", "output": "doc", "need_eos_token": False},
    ]
    assert read("conversation", {"conversation": turns}) == [
        Message("system", "S"),
        Message("user", "a"),
        Message("assistant", "b", train=False),
        Message("user", ""),
        Message("assistant", "c"),
        Message("user", ""),
        Message("assistant", ""),
        Message("text", "doc"),
    ]


@pytest.mark.parametrize(
    ("marks", "train"),
    [
        ({}, True),
        ({"loss": None}, True),
        ({"loss": True}, True),
        ({"loss": False}, False),
        ({"loss": "False"}, False),
        ({"loss": "true"}, True),
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"weight": None, "loss": 0}, False),
    ],
)
def test_openai_loss_and_weight(marks: dict[str, Any], train: bool) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **marks}]}
    assert read("openai", row) == [Message("user", "q"), Message("assistant", "a", train=train)]


def test_openai_parts_developer_and_dangling_question() -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "left over"},
        ]
    }
    assert read("openai", row) == [Message("system", "S"), Message("user", "ab"), Message("assistant", "c")]


def test_sharegpt_with_a_system_column() -> None:
    row = {"system": "S", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert read("sharegpt", row) == [Message("system", "S"), Message("user", "a"), Message("assistant", "b")]


def test_alpaca_with_history_and_system() -> None:
    row = {"instruction": "c", "input": "d", "output": "e", "system": "S", "history": [["a", "b"]]}
    assert [message.text for message in read("alpaca", row)] == ["S", "a", "b", "c\nd", "e"]


def test_system_texts_are_those_of_the_table() -> None:
    assert read("sql", CASES["sql"][0]["in"])[0] == Message("system", SYSTEMS["sql"])
    assert read("medical", CASES["medical"][0]["in"])[0] == Message("system", SYSTEMS["medical"])


def test_agent_tools_are_described() -> None:
    text = read("msagent_react", CASES["msagent_react"][0]["in"])[0].text
    assert "search: find things 参数: q: query" in text
    assert "[search]" in text


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("conversation", {"text": "a"}, "no list of turns"),
        ("conversation", {"conversation": []}, "an empty conversation"),
        ("conversation", {"conversation": [{"input": "a"}]}, "a turn without output"),
        ("conversation", {"conversation": ["a"]}, "a turn is not an object"),
        ("conversation", {"conversation": [{"input": ["a"], "output": "b"}]}, "input is not text"),
        ("openai", {"messages": [{"role": "user", "content": "a"}]}, "no assistant turn"),
        ("openai", {"messages": [{"role": "assistant", "content": "a"}]}, "no user turn"),
        ("openai", {"messages": [{"role": "tool", "content": "a"}]}, "the role tool"),
        ("openai", {"messages": [{"content": "a"}]}, "without a role"),
        ("openai", {"messages": [{"role": "user"}]}, "without content"),
        ("openai", {"messages": "a"}, "no list of messages"),
        ("openai", {"messages": ["a"]}, "not an object"),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "other than text"),
        ("openai", {"messages": [{"role": "user", "content": "a", "loss": "maybe"}]}, "neither true nor false"),
        ("openai", {"messages": [{"role": "user", "content": "a", "weight": 0.5}]}, "neither 0 nor 1"),
        (
            "openai",
            {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]},
            "no assistant turn after",
        ),
        ("alpaca", {"instruction": "a", "output": None}, "no answer in column output"),
        ("alpaca", {"output": "a"}, "no column instruction"),
        ("alpaca", {"instruction": "a", "output": "b", "history": ["x"]}, "not a list of pairs"),
        ("text", {"text": " \n"}, "an empty text"),
        ("oasst1", {"text": "### Human: a"}, "no assistant turn"),
        ("oasst1", {"text": "### Robot: a"}, "neither Human nor Assistant"),
        ("pair", {"x": "a"}, "no column of questions"),
        ("pair", {"question": "a", "answer": " "}, "no answer in column answer"),
        (
            "llava_image_only",
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "<image>",
        ),
        ("msagent_react", {"conversations": "[{'from': "}, "not a list"),
        ("msagent_react", {"conversations": [{"from": "user", "value": "x"}]}, "fewer than two"),
        (
            "msagent_react",
            {"conversations": [{"from": "user", "value": "x"}, {"from": "assistant", "value": "<|startofthink|>no"}]},
            "cannot be read",
        ),
    ],
)
def test_bad_rows_say_why(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read(name, row)


def test_agent_texts_are_not_executed() -> None:
    with pytest.raises(BadRow):
        read("msagent_react", {"conversations": "__import__('os').getcwd()"})


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"conversation": [{"input": "a", "output": "b"}]}, "conversation"),
        ({"messages": [{"role": "user", "content": "a"}]}, "openai"),
        ({"conversations": [{"role": "user", "content": "a"}], "id": 1}, "openai"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "sharegpt"),
        ({"conversations": "[{'from': 'user', 'value': 'a'}]"}, "msagent_react"),
        ({"instruction": "a", "input": "", "output": "b", "text": "ab"}, "alpaca"),
        ({"instruction_zh": "a", "input_zh": "", "output_zh": "b", "instruction": "x"}, "alpaca_zh"),
        ({"system_prompt": "s", "question": "a", "response": "b"}, "openorca"),
        ({"input": "a", "output": "b"}, "pair"),
        ({"问题": "a", "答案": "b"}, "pair"),
        ({"prompt": "a", "response": "b"}, "pair"),
        ({"text": "a"}, "text"),
        ({"text": "### Human: a### Assistant: b"}, "oasst1"),
    ],
)
def test_layouts_are_recognised(row: dict[str, Any], name: str) -> None:
    assert recognise([row], "data.json") == name
    assert recognise([{}, row], "data.json") == name


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"conversation": [{"input": "a"}]}, "conversation"),
        ({"conversation": []}, "conversation"),
        ({"messages": []}, "openai"),
        ({"conversations": []}, "sharegpt"),
    ],
)
def test_a_layout_is_recognised_by_rows_that_cannot_be_learned(row: dict[str, Any], name: str) -> None:
    assert recognise([row], "data.json") == name


def test_an_unknown_layout_says_what_was_found_and_what_is_known() -> None:
    with pytest.raises(UserError) as caught:
        recognise([{"foo": 1}, {"foo": 1, "bar": 2}], "data.json")
    assert "data.json has the columns foo, bar" in caught.value.what
    assert "messages: [{role, content}]" in caught.value.fix
    assert "file.py:function" in caught.value.fix
