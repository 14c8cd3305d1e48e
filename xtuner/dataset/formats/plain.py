"""Owns the formats whose rows are one text."""

from xtuner.conversation.message import Conversation, Message
from xtuner.dataset.row import BadRow, Row, read_text

HUMAN, ASSISTANT = "Human:", "Assistant:"


def text(row: Row) -> Conversation:
    """Read `text`: a document that is learned whole, for continued pre-training."""
    document = read_text(row, "text").strip()
    if not document:
        raise BadRow("an empty text")
    return [Message("text", document)]


def oasst1(row: Row) -> Conversation:
    """Read `text` of the form "### Human: ...### Assistant: ..."; a last question without an answer is left out."""
    parts = [part.strip() for part in read_text(row, "text").split("###")]
    messages: Conversation = []
    for part in filter(None, parts):
        if part.startswith(HUMAN):
            messages.append(Message("user", part.removeprefix(HUMAN).strip()))
        elif part.startswith(ASSISTANT):
            messages.append(Message("assistant", part.removeprefix(ASSISTANT).strip()))
        else:
            raise BadRow("a part that neither Human nor Assistant speaks")
    while messages and messages[-1].role == "user":
        messages.pop()
    if not messages:
        raise BadRow("no assistant turn")
    return messages
