"""Owns the formats of preferences: a prompt with a chosen and a rejected answer."""

from collections.abc import Mapping, Sequence

from xtuner.conversation.message import Conversation, Message
from xtuner.dataset.formats.message import to_messages
from xtuner.dataset.row import BadRow, Pair, Row, read_text

PROMPTS = ("prompt", "question", "instruction", "input")


def preference(row: Row) -> Pair:
    """Read `prompt`, `chosen`, `rejected`: lists of messages, or texts.

    Without a list for a prompt, lists of messages in `chosen` and `rejected` begin with it (all but the last message).
    A column `system` opens a prompt that is a text.
    """
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    prompt = _prompt(row)
    if prompt is None and len(chosen) > 1:
        return orpo_dpo_mix_40k(row)
    if prompt is None:
        raise BadRow("no prompt")
    return Pair(prompt, *(_without(prompt, answer) for answer in (chosen, rejected)))


def orpo_dpo_mix_40k(row: Row) -> Pair:
    """Read `chosen` and `rejected`, lists of messages that end with the answer; the rest of `chosen` is the prompt."""
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    return Pair(chosen[:-1], chosen[-1:], rejected[-1:])


def intel_orca_dpo(row: Row) -> Pair:
    """Read `question`, `chosen`, `rejected`, and `system` where there is one."""
    system = row.get("system")
    opening = [Message("system", read_text(row, "system"))] if system else []
    prompt = [*opening, Message("user", read_text(row, "question"))]
    return Pair(prompt, *([Message("assistant", read_text(row, name))] for name in ("chosen", "rejected")))


def _answer(row: Row, column: str) -> Conversation:
    value = row.get(column)
    if value is None:
        raise BadRow(f"no answer in column {column}")
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, str):
        return [Message("assistant", value)]
    if not isinstance(value, Sequence):
        raise BadRow(f"{column} is neither a text nor a list of messages")
    return to_messages(value)


def _prompt(row: Row) -> Conversation | None:
    value = next((row[name] for name in PROMPTS if row.get(name) is not None), None)
    if value is None:
        return None
    if isinstance(value, str):
        system = row.get("system")
        opening = [Message("system", read_text(row, "system"))] if system else []
        return [*opening, Message("user", value)]
    if not isinstance(value, Sequence):
        raise BadRow("prompt is neither a text nor a list of messages")
    return to_messages(value)


def _without(prompt: Conversation, answer: Conversation) -> Conversation:
    """Some data sets repeat the prompt in front of each answer."""
    said = [message.text for message in prompt if message.role != "system"]
    talk = [message for message in answer if message.role != "system"]
    repeated = len(talk) > len(said) and [message.text for message in talk[: len(said)]] == said
    return talk[len(said) :] if repeated else answer
