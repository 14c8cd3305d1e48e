"""Owns the guess which row format a source has, from its columns and first row."""

from collections.abc import Mapping, Sequence
from typing import Any

from xtuner.dataset.formats.column import ANSWERS, QUESTIONS, answer_column, question_column
from xtuner.errors import UserError

KNOWN = (
    "conversation: [{input, output}]; messages: [{role, content}]; conversations: [{from, value}]; "
    "instruction, input, output; question, answer (or prompt, response); text"
)

COLUMNS = {
    *QUESTIONS,
    *ANSWERS,
    *("abstract", "attention_mask", "chat", "color", "context", "conversation", "conversations", "cumulative_len"),
    *("description", "history", "input_ids", "input_zh", "instruction_zh", "labels", "messages", "meta_instruction"),
    *("num_turns", "output_zh", "rejected", "system", "system_prompt", "text", "title", "tokens"),
}
"""Names of columns that formats look at."""


def fold_columns(samples: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return names of columns that are written otherwise than formats have them -> as formats have them.

    They differ in capitals and in white space at the edges alone ("Question "). Where two columns would have the same
    name, both keep their own.
    """
    found = dict.fromkeys(name for sample in samples for name in sample)
    known = [(name, name.strip().lower()) for name in found if isinstance(name, str)]
    names = [folded for _, folded in known]
    return {name: folded for name, folded in known if folded in COLUMNS and name != folded and names.count(folded) == 1}


def recognise(samples: Sequence[Mapping[str, Any]], label: str) -> str:
    """Return the name of the row format of a source: that of the first of its rows `samples` (at least one) that shows.

    A row that cannot be used may well be the first. `label` names the source in errors.

    Raises:
        UserError: an unknown layout; lists what was found and what is known.
    """
    for sample in samples:
        if (name := guess(sample)) is not None:
            return name
    columns = list(dict.fromkeys(str(name) for sample in samples for name in sample))
    raise UserError(
        f"{label} has the columns {', '.join(columns) or '(none)'}, which is no layout that is known.",
        f"Known: {KNOWN}. Rename columns (rename: {{old: new}}), or give a function with format: file.py:function.",
    )


def recognise_pairs(samples: Sequence[Mapping[str, Any]], label: str) -> str:
    """Return the name of the format of preferences that a source has.

    Raises:
        UserError: its rows have no chosen and rejected answers.
    """
    for sample in samples:
        if sample.get("chosen") is not None and sample.get("rejected") is not None:
            return "preference"
    columns = list(dict.fromkeys(str(name) for sample in samples for name in sample))
    raise UserError(
        f"{label} has the columns {', '.join(columns) or '(none)'}; preferences have prompt, chosen and rejected.",
        "Rename columns (rename: {old: new}), or choose the objective sft.",
    )


def guess(sample: Mapping[str, Any]) -> str | None:
    """Return the name of the row format of one row; None: it shows none."""
    columns = list(sample)
    if isinstance(sample.get("input_ids"), Sequence):
        return "tokens"
    if isinstance(sample.get("chat"), Mapping) and "meta_instruction" in columns:
        return "moss"
    for column in ("messages", "conversations", "conversation"):
        keys = _keys(sample.get(column))
        if "role" in keys:
            return "openai"
        if "from" in keys:
            return "sharegpt"
        if {"input", "output"} & keys and column == "conversation":
            return "conversation"
    if sample.get("conversation") == []:
        return "conversation"
    if sample.get("messages") == []:
        return "openai"
    if sample.get("conversations") == []:
        return "sharegpt"
    if str(sample.get("conversations", "")).startswith("[{'from'"):
        return "msagent_react"
    for wanted, name in (
        (("instruction", "output"), "alpaca"),
        (("instruction_zh", "output_zh"), "alpaca_zh"),
        (("system_prompt", "question", "response"), "openorca"),
    ):
        if all(column in columns for column in wanted):
            return name
    if question_column(columns) and answer_column(columns):
        return "pair"
    if "text" in columns:
        return "oasst1" if str(sample["text"]).lstrip().startswith("### Human:") else "text"
    return None


def _keys(value: Any) -> set[str]:
    if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
        return set(value[0])
    return set()
