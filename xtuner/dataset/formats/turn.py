"""Owns the format of 0.1.x: `{"conversation": [{"input", "output", "system"}, ...]}`."""

from collections.abc import Mapping, Sequence
from typing import Any

from xtuner.conversation.message import Conversation, Message
from xtuner.dataset.row import BadRow, Row, to_text


def conversation(row: Row) -> Conversation:
    """Read `row["conversation"]`, a list of turns.

    A turn has `output`, and may have `input`, `system` (None means none), `output_with_loss` (False: shown, not
    learned) and `need_eos_token` (False without an input: a plain text).
    """
    turns = row.get("conversation")
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRow("no list of turns in conversation")
    return from_turns(turns)


def from_turns(turns: Sequence[Any]) -> Conversation:
    """Turn 0.1.x turns into messages."""
    messages: Conversation = []
    if not turns:
        raise BadRow("an empty conversation")
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise BadRow("a turn is not an object")
        if turn.get("output") is None:
            raise BadRow("a turn without output")
        system, asked = to_text(turn.get("system"), "system"), to_text(turn.get("input"), "input")
        train = turn.get("output_with_loss") is not False
        answer = to_text(turn["output"], "output")
        if system:
            messages.append(Message("system", system))
        if turn.get("need_eos_token") is False and not asked:
            messages.append(Message("text", answer, train=train))
        else:
            messages.append(Message("user", asked))
            messages.append(Message("assistant", answer, train=train))
    return messages


def to_turns(conversation: Conversation) -> list[dict[str, Any]]:
    """Write messages as turns of 0.1.x, the reverse of `from_turns`; a last question without an answer is left out."""
    turns: list[dict[str, Any]] = []
    systems: list[str] = []
    asked = ""
    for message in conversation:
        if message.role == "system":
            systems.append(message.text)
        elif message.role == "user":
            asked += message.text
        else:
            turn: dict[str, Any] = {"input": asked, "output": message.text}
            if systems:
                turn = {"system": "\n".join(systems), **turn}
            if message.role == "text":
                turn["need_eos_token"] = False
            if not message.train:
                turn["output_with_loss"] = False
            turns.append(turn)
            systems, asked = [], ""
    return turns
