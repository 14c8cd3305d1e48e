"""Owns the translation of a `ChatTemplate` into the Jinja text that other programs read from tokenizer_config.json."""

import json
import re

from xtuner.conversation.template import SLOT, ChatTemplate

NAME = re.compile(r"\{#-? template ([\w-]+) of XTuner -?#\}")
"""The comment by which `detect` knows our own work."""

OPENING = {"chatglm2": "[gMASK]sop ", "chatglm3": "[gMASK]sop"}
"""What opens a conversation of models whose tokenizers name no BOS. They put a space before every text they are given:
an answer too has one there, since it is tokenised alone, and here it stands behind other words."""


def to_jinja(template: ChatTemplate) -> str:
    """Return a chat template (as transformers, vLLM and llama.cpp render it) that spells what `template.render` spells.

    It knows the variables `messages`, `bos_token` and `eos_token`. Like `render`, it ends with the opening of the
    assistant's turn whenever a question is unanswered, whether or not `add_generation_prompt` is set.
    """
    instruction = _expression(template.instruction)
    opening = f"bos_token or {_literal(OPENING[template.name])}" if template.name in OPENING else "bos_token"
    if template.system is None:
        system = f"raise_exception({_literal(f'The template {template.name} has no place for a system text.')})"
    else:
        system = _expression(template.system)
    prompt = (
        "{%- if t.bos -%}{{ " + opening + " }}{%- endif -%}"
        "{%- if t.system -%}{{ " + system + " }}{%- endif -%}"
        "{{ " + instruction + " }}"
    )
    ends = template.suffix if template.suffix_as_eos else None
    answer = "{{ content ~ " + _literal(template.suffix) + " }}" if template.suffix else "{{ content }}"
    if template.name in OPENING:
        answer = "{%- if content -%}{{ ' ' }}{%- endif -%}" + answer
    if ends is None:
        answer += "{{ eos_token }}"
    if template.sep:
        answer += "{{ " + _literal(template.sep) + " }}"
    bos = "false" if template.suffix_as_eos else "true"
    return (
        "{#- template " + template.name + " of XTuner -#}"
        "{%- set t = namespace(system='', input='', open=false, round=1, bos=true) -%}"
        "{%- for message in messages -%}"
        "{%- set content = message['content'] or '' -%}"
        "{%- if message['role'] == 'system' -%}"
        "{%- if content -%}"
        "{%- if t.system -%}{%- set t.system = t.system ~ '\\n' -%}{%- endif -%}"
        "{%- set t.system = t.system ~ content -%}{%- set t.open = true -%}"
        "{%- endif -%}"
        "{%- elif message['role'] == 'user' -%}"
        "{%- set t.input = t.input ~ content -%}{%- set t.open = true -%}"
        "{%- elif message['role'] == 'assistant' -%}"
        + prompt
        + answer
        + "{%- set t.system = '' -%}{%- set t.input = '' -%}{%- set t.open = false -%}"
        "{%- set t.round = t.round + 1 -%}{%- set t.bos = " + bos + " -%}"
        "{%- else -%}{{ raise_exception('This chat template knows the roles system, user and assistant.') }}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if t.open -%}" + prompt + "{%- endif -%}"
    )


def _expression(slot: str) -> str:
    """Turn "a{input}b" into the Jinja expression "a" ~ t.input ~ "b"."""
    parts: list[str] = []
    for index, part in enumerate(SLOT.split(slot)):
        if index % 2:
            parts.append(f"t.{part}")
        elif part:
            parts.append(_literal(part))
    return " ~ ".join(parts)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
