"""Owns the format of MOSS-003: dialogues with thoughts and tool calls, spelled out in the data itself."""

from collections.abc import Mapping

from xtuner.conversation.message import Span
from xtuner.dataset.row import BadRow, Row, Script, to_text

NAME = "MOSS"
PARTS = ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS")
RESULTS, END_RESULTS = "<|Results|>:", "<eor>"


def moss(row: Row, bot_name: str | None = None) -> Script:
    """Read `meta_instruction` and `chat`: {turn_1: {Human, Inner Thoughts, Commands, Tool Responses, MOSS}, ...}.

    All is learned, questions too, but the instruction and what tools answered. `bot_name` takes the place of MOSS.
    """

    def say(value: object, column: str) -> str:
        text = to_text(value, column)
        return text.replace(NAME, bot_name) if bot_name else text

    chat = row.get("chat")
    if not isinstance(chat, Mapping):
        raise BadRow("no turns in chat")
    count = row.get("num_turns")
    if count is not None and not str(count).isdecimal():
        raise BadRow("num_turns is not a number")
    numbers = range(1, (len(chat) if count is None else int(count)) + 1)
    turns: list[list[Span]] = []
    for number in numbers:
        turn = chat.get(f"turn_{number}")
        if not isinstance(turn, Mapping):
            raise BadRow("chat has fewer turns than num_turns")
        spans: list[Span] = []
        for part in PARTS:
            text = say(turn.get(part), part)
            spans += _response(text) if part == "Tool Responses" else [Span(text, train=True)]
        turns.append([span for span in spans if span.text])
    instruction = say(row.get("meta_instruction"), "meta_instruction")
    opening = [Span(mark="bos"), *([Span(instruction)] if instruction else [])]
    return Script([opening, *turns])


def _response(text: str) -> list[Span]:
    """What a tool answered is not learned; the marks around it are."""
    body, end, rest = text.removeprefix(RESULTS).rpartition(END_RESULTS)
    if not text.startswith(RESULTS) or not end:
        return [Span(text)]
    return [Span(RESULTS, train=True), Span(body), Span(end + rest, train=True)]
