"""The chat template for other programs spells a conversation as ours does."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from test_conversation_template import TURNS, to_conversation

from xtuner.conversation.builtin import TEMPLATES, find_template
from xtuner.conversation.jinja import OPENING, to_jinja
from xtuner.conversation.message import Conversation, Message, Span
from xtuner.model.load import load_tokenizer

BOS, EOS = "<s>", "</s>"
HARD = [
    [Message("system", "one"), Message("system", "two"), Message("user", "a\n"), Message("user", " b")],
    [Message("user", ""), Message("assistant", ""), Message("user", "{{ 7 }} {% if %} {# #} \\n \" ' {input}")],
    [Message("user", "a"), Message("assistant", "b"), Message("system", "late"), Message("user", "c")],
]


def compile_template(text: str) -> Any:
    """As transformers compiles a chat template."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = json.dumps
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(text)


def as_dicts(talk: Conversation) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in talk]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_jinja_renders_what_we_render(name: str) -> None:
    """But for a space before ChatGLM's answers, which its tokenizer puts there if they come alone, as ours do."""
    template = find_template(name)
    jinja = compile_template(to_jinja(template))
    marks = {"bos": BOS, "eos": EOS, None: ""}
    gap = " " if name in OPENING else ""

    def spell(span: Span) -> str:
        return (gap if span.text and span.train else "") + span.text + marks[span.mark]

    for talk in [to_conversation(turns) for turns in TURNS] + HARD:
        if template.system is None:
            talk = [message for message in talk if message.role != "system"]
        talk = [dataclasses.replace(message, train=True) for message in talk]
        for length in range(len(talk) + 1):
            ours = "".join(spell(span) for span in template.render(talk[:length]))
            for generation in (False, True):
                theirs = jinja.render(
                    messages=as_dicts(talk[:length]), bos_token=BOS, eos_token=EOS, add_generation_prompt=generation
                )
                assert theirs == ours


def test_a_system_text_without_a_place_is_an_error_there_too() -> None:
    jinja = compile_template(to_jinja(find_template("minicpm")))
    with pytest.raises(TemplateError, match="no place for a system text"):
        jinja.render(messages=as_dicts([Message("system", "S"), Message("user", "u")]), bos_token=BOS)
    with pytest.raises(TemplateError, match="knows the roles"):
        jinja.render(messages=[{"role": "tool", "content": "x"}], bos_token=BOS)


def test_transformers_renders_it() -> None:
    tokenizer = load_tokenizer(str(Path(__file__).parents[1] / "golden" / "internlm2"))
    tokenizer.chat_template = to_jinja(find_template("default"))
    talk = as_dicts([Message("user", "a"), Message("assistant", "b"), Message("user", "c")])
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert text == "<s><|User|>:a\n<|Bot|>:b</s>\n<s><|User|>:c\n<|Bot|>:"


@pytest.mark.parametrize("name", ["chatglm2", "chatglm3"])
def test_conversations_of_chatglm_open_although_its_tokenizer_names_no_bos(name: str) -> None:
    text = compile_template(to_jinja(find_template(name))).render(
        messages=[{"role": "user", "content": "hi"}], eos_token=EOS
    )
    assert text == OPENING[name] + find_template(name).render([Message("user", "hi")])[1].text
