"""Owns the formats whose rows are one question and one answer in named columns."""

from collections.abc import Sequence
from typing import Any

from xtuner.conversation.builtin import SYSTEMS
from xtuner.conversation.message import Conversation, Message
from xtuner.dataset.row import BadRow, Row, read_text, to_text

NO_OUTPUT = "<nooutput>"

QUESTIONS = ("question", "query", "prompt", "instruction", "input", "问题", "提问", "问")
ANSWERS = ("answer", "response", "completion", "output", "chosen", "答案", "回答", "答")


def talk(asked: str, answered: str, system: str = "") -> Conversation:
    """Make a conversation of one turn."""
    opening = [Message("system", system)] if system else []
    return [*opening, Message("user", asked), Message("assistant", answered)]


def answer(row: Row, column: str) -> str:
    """Return the column that is learned; None there, or NaN, is a row without an answer."""
    value = row.get(column)
    if value is None or value != value:
        raise BadRow(f"no answer in column {column}")
    return read_text(row, column)


def alpaca(row: Row) -> Conversation:
    """Read `instruction`, `input`, `output`, and where present `system` and `history` (pairs of earlier turns)."""
    answered = answer(row, "output")
    if answered == NO_OUTPUT:
        raise BadRow(f"the output is {NO_OUTPUT}")
    asked = f"{read_text(row, 'instruction')}\n{to_text(row.get('input'), 'input')}"
    system = to_text(row.get("system"), "system")
    earlier = _history(row.get("history") or [])
    turns = talk(asked, answered, system)
    return turns[:-2] + earlier + turns[-2:]


def alpaca_zh(row: Row) -> Conversation:
    """Read `instruction_zh`, `input_zh`, `output_zh`."""
    asked = f"{read_text(row, 'instruction_zh')}\n{to_text(row.get('input_zh'), 'input_zh')}"
    return talk(asked, answer(row, "output_zh"))


def arxiv(row: Row) -> Conversation:
    """Read `abstract` and `title`: a title is to be found for the abstract."""
    return talk(read_text(row, "abstract"), answer(row, "title"), SYSTEMS["arxiv_gentile"])


def code_alpaca(row: Row) -> Conversation:
    """Read `prompt` and `completion`, spoken by a programmer."""
    return talk(read_text(row, "prompt"), answer(row, "completion"), SYSTEMS["coder"])


def colors(row: Row) -> Conversation:
    """Read `description` (what follows its first colon) and `color`."""
    described = read_text(row, "description")
    return talk(described.partition(":")[2].strip(), answer(row, "color"), SYSTEMS["colorist"])


def crime_kg_assitan(row: Row) -> Conversation:
    """Read `input` and `output`, spoken by a lawyer (the spelling of the name is that of 0.1.x)."""
    return talk(read_text(row, "input"), answer(row, "output"), SYSTEMS["lawyer"])


def default(row: Row) -> Conversation:
    """Read `input` and `output`, and `system` where present."""
    return talk(read_text(row, "input"), answer(row, "output"), to_text(row.get("system"), "system"))


def law_reference(row: Row) -> Conversation:
    """Read `question` and `answer`, spoken by a lawyer."""
    return talk(read_text(row, "question"), answer(row, "answer"), SYSTEMS["lawyer"])


def medical(row: Row) -> Conversation:
    """Read `instruction`, `input`, `output`, spoken by a physician."""
    asked = f"{read_text(row, 'instruction')}\n{to_text(row.get('input'), 'input')}"
    return talk(asked, answer(row, "output"), SYSTEMS["medical"])


def openorca(row: Row) -> Conversation:
    """Read `system_prompt`, `question`, `response`."""
    return talk(read_text(row, "question"), answer(row, "response"), read_text(row, "system_prompt"))


def pair(row: Row) -> Conversation:
    """Read one column of questions and one of answers, whatever usual names they have; `system` where present."""
    asked, answered = question_column(list(row)), answer_column(list(row))
    if asked is None or answered is None:
        raise BadRow("no column of questions or none of answers")
    said = answer(row, answered)
    if not said.strip():  # tables have no other way to say that an answer is missing
        raise BadRow(f"no answer in column {answered}")
    return talk(read_text(row, asked), said, to_text(row.get("system"), "system"))


def question_column(columns: Sequence[str]) -> str | None:
    """Return the column that holds questions."""
    return next((name for name in QUESTIONS if name in columns), None)


def answer_column(columns: Sequence[str]) -> str | None:
    """Return the column that holds answers."""
    return next((name for name in ANSWERS if name in columns), None)


def sql(row: Row) -> Conversation:
    """Read `context` (table definitions), `question`, `answer` (a query)."""
    asked = f"{read_text(row, 'context')}\n{read_text(row, 'question')}"
    return talk(asked, answer(row, "answer"), SYSTEMS["sql"])


def stack_exchange(row: Row) -> Conversation:
    """Read `question` and `response`."""
    return talk(read_text(row, "question"), answer(row, "response"))


def tiny_codes(row: Row) -> Conversation:
    """Read `prompt` and `response`, spoken by a programmer."""
    return talk(read_text(row, "prompt"), answer(row, "response"), SYSTEMS["coder"])


def _history(pairs: Any) -> Conversation:
    messages: Conversation = []
    for turn in pairs:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise BadRow("history is not a list of pairs")
        messages += talk(to_text(turn[0], "history"), to_text(turn[1], "history"))
    return messages
