"""Templates spell conversations as 0.1.x did (goldens made by 0.1.21, see tests/golden/xtuner_data/versions.json)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from xtuner.conversation.builtin import SYSTEMS, TEMPLATES, describe_template, find_system, find_template, to_template
from xtuner.conversation.message import Conversation, Message, Span
from xtuner.conversation.template import ChatTemplate
from xtuner.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "xtuner_data"
TURNS: list[list[dict[str, Any]]] = json.loads((GOLDEN / "conversations.json").read_text(encoding="utf-8"))
EXPECTED: dict[str, list[list[dict[str, Any]]]] = json.loads(
    (GOLDEN / "expected_templates.json").read_text(encoding="utf-8")
)["expected"]

# names of compat/formats.md, section 4
NAMES = {
    "default",
    "zephyr",
    "internlm_chat",
    "internlm2_chat",
    "moss_sft",
    "llama2_chat",
    "code_llama_chat",
    "chatglm2",
    "chatglm3",
    "qwen_chat",
    "baichuan_chat",
    "baichuan2_chat",
    "wizardlm",
    "wizardcoder",
    "vicuna",
    "deepseek_coder",
    "deepseekcoder",
    "deepseek_moe",
    "deepseek_v2",
    "mistral",
    "mixtral",
    "minicpm",
    "gemma",
    "cohere_chat",
    "llama3_chat",
    "phi3_chat",
}
STOP_WORDS = {
    "internlm_chat": ("<eoa>",),
    "internlm2_chat": ("<|im_end|>",),
    "qwen_chat": ("<|im_end|>", "<|endoftext|>"),
    "moss_sft": ("<eoc>", "<eom>"),
    "llama3_chat": ("<|eot_id|>",),
    "phi3_chat": ("<|end|>",),
    "cohere_chat": ("<|END_OF_TURN_TOKEN|>",),
    "deepseek_v2": ("<｜end▁of▁sentence｜>",),
    "gemma": ("<end_of_turn>",),
    "chatglm3": ("<|user|>", "<|observation|>"),  # not in 0.1.x, whose answers ran on into the next turn
}


def to_conversation(turns: list[dict[str, Any]]) -> Conversation:
    messages: Conversation = []
    for turn in turns:
        if turn.get("system"):
            messages.append(Message("system", turn["system"]))
        messages.append(Message("user", turn.get("input") or ""))
        messages.append(Message("assistant", turn["output"], train=turn.get("output_with_loss", True)))
    return messages


def expected_spans(turns: list[dict[str, Any]]) -> list[Span]:
    """The assembly of compat/formats.md, section 5, over the texts of the golden file."""
    spans: list[Span] = []
    need_bos = True
    for turn in turns:
        train = turn.get("output_with_loss", True)
        parts = [Span(turn["input"]), Span(turn["output"], train=train)]
        if turn["need_eos_token"]:
            parts.append(Span(mark="eos", train=train))
        parts.append(Span(turn["sep"]))
        spans += [Span(mark="bos")] * need_bos + [part for part in parts if part.text or part.mark]
        need_bos = turn["need_eos_token"]
    return spans


def test_the_table_holds_every_name_of_0_1() -> None:
    assert len(NAMES) == 26
    assert set(TEMPLATES) == {*NAMES, "plain"}
    assert set(EXPECTED) == NAMES - {"minicpm"}  # came with 0.1.23
    assert set(SYSTEMS) == {"moss_sft", "alpaca", "arxiv_gentile", "colorist", "coder", "lawyer", "medical", "sql"}
    assert all(template.name == name for name, template in TEMPLATES.items())
    assert {name: t.stop_words for name, t in TEMPLATES.items() if t.stop_words} == STOP_WORDS


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_rendering_equals_the_golden_texts(name: str) -> None:
    for turns, expected in zip(TURNS, EXPECTED[name], strict=True):
        assert TEMPLATES[name].render(to_conversation(turns)) == expected_spans(expected)


def test_minicpm_has_no_place_for_a_system_text() -> None:
    spans = find_template("minicpm").render([Message("user", "a"), Message("assistant", "b")])
    assert spans[1:3] == [Span("<用户> a <AI>"), Span("b", train=True)]
    with pytest.raises(UserError, match="minicpm has no place for a system text"):
        find_template("minicpm").render([Message("system", "S"), Message("user", "a")])


def test_braces_in_texts_stay() -> None:
    messages = [
        Message("system", "{input} {system}"),
        Message("user", "{system}{round}{0}"),
        Message("assistant", "{}"),
    ]
    texts = [span.text for span in find_template("chatglm2").render(messages)]
    assert texts[1] == "{input} {system}\n[Round 1]\n\n问：{system}{round}{0}\n\n答："


def test_messages_of_one_turn_are_joined() -> None:
    messages = [
        Message("system", "one"),
        Message("system", ""),
        Message("system", "two"),
        Message("user", "a"),
        Message("user", "b"),
        Message("assistant", "c"),
        Message("assistant", "d"),
    ]
    texts = [span.text for span in find_template("zephyr").render(messages) if not span.mark]
    assert texts == [
        "<|system|>\none\ntwo\n<|user|>\nab\n<|assistant|>\n",
        "c",
        "\n",
        "<|user|>\n\n<|assistant|>\n",
        "d",
        "\n",
    ]


def test_a_document_is_learned_whole_with_no_end() -> None:
    spans = find_template("internlm2_chat").render([Message("text", "once upon a time")])
    assert spans == [Span(mark="bos"), Span("once upon a time", train=True)]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda template: template.name)
def test_the_prompt_is_a_prefix_of_the_training_text_at_every_turn(template: ChatTemplate) -> None:
    for turns in TURNS:
        talk = to_conversation(turns)
        if template.system is None:
            talk = [message for message in talk if message.role != "system"]
        whole = template.render(talk)
        for index, message in enumerate(talk):
            if message.role == "assistant":
                prompt = template.render(talk[:index], reply=True)
                assert whole[: len(prompt)] == [Span(s.text, s.train, s.mark) for s in prompt]
                following = next((span for span in whole[len(prompt) :] if span.text or span.mark), None)
                assert following is None or following.train is message.train


def test_nothing_to_reply_to_is_an_error() -> None:
    talk = [Message("user", "a"), Message("assistant", "b")]
    for empty in ([], talk):
        with pytest.raises(UserError, match="nothing to reply to"):
            find_template("default").render(empty, reply=True)


def test_tool_messages_are_refused_for_now() -> None:
    with pytest.raises(UserError, match="role tool"):
        find_template("default").render([Message("user", "a"), Message("tool", "b")])
    with pytest.raises(UserError, match="tool calls"):
        find_template("default").render([Message("user", "a"), Message("assistant", "b", calls=({"name": "f"},))])


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UserError, match=r"internlm2_chat"):
        find_template("internlm2-chat")
    with pytest.raises(UserError, match=r"Did you mean alpaca"):
        find_system("alpacca")
    assert "小书" in find_system("moss_sft", bot_name="小书")
    assert "{bot_name}" not in find_system("moss_sft")


def test_a_record_describes_any_template() -> None:
    own = ChatTemplate("mine", "{input}", stop_words=("a", "b"))
    renamed = dataclasses.replace(own, name="vicuna")
    assert describe_template(TEMPLATES["vicuna"]) == "vicuna"
    for template in (own, renamed, TEMPLATES["vicuna"]):
        assert to_template(json.loads(json.dumps(describe_template(template)))) == template


@pytest.mark.parametrize(
    "recorded",
    [
        {},
        {"name": "a"},
        {"name": "a", "instruction": 5},
        {"name": "a", "instruction": "b", "run": "c"},
        {"name": "a", "instruction": "b", "stop_words": 5},
        {"name": "a", "instruction": "b", "system": 5},
    ],
    ids=str,
)
def test_a_damaged_description(recorded: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="recorded chat template is damaged"):
        to_template(recorded)
