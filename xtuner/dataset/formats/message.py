"""Owns the formats that are lists of messages: OpenAI, ShareGPT and their relatives."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from xtuner.conversation.message import Conversation, Message
from xtuner.dataset.row import BadRow, Row, to_text

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
IMAGE = "<image>"


def openai(row: Row) -> Conversation:
    """Read `messages`: objects with `role` and `content`.

    An assistant's message may carry `loss` (true, false, or these words as text) and `weight` (1 or 0, as in OpenAI's
    fine-tuning files); false or 0 means that it is shown but not learned.
    """
    return from_messages(row, ("messages", "conversations", "conversation"))


def sharegpt(row: Row) -> Conversation:
    """Read `conversations`: objects with `from` (human, gpt, system) and `value`; a column `system` opens the talk."""
    return from_messages(row, ("conversations", "messages", "conversation"))


def wizardlm(row: Row) -> Conversation:
    """Read `conversations` as `sharegpt` does."""
    return sharegpt(row)


def llava(row: Row) -> Conversation:
    """Read `conversations` with the mark of a picture moved to the front of its message."""
    return [_image_first(message) for message in sharegpt(row)]


def llava_image_only(row: Row) -> Conversation:
    """Read `conversations` in which a picture is all that is asked: any other words of the question are left out."""
    messages: Conversation = []
    for message in sharegpt(row):
        if message.role == "user":
            if IMAGE not in message.text:
                raise BadRow(f"a question without {IMAGE}")
            message = Message("user", IMAGE)
        messages.append(message)
    return messages


def from_messages(row: Row, columns: Sequence[str]) -> Conversation:
    """Read the first of `columns` that holds a list of messages.

    What stands before the first question or after the last answer teaches nothing and is left out.
    """
    listed = next((row[name] for name in columns if isinstance(row.get(name), Sequence)), None)
    if listed is None or isinstance(listed, str):
        raise BadRow(f"no list of messages in {columns[0]}")
    messages = to_messages(listed)
    opening = to_text(row.get("system"), "system")
    if opening and not any(message.role == "system" for message in messages):
        messages.insert(0, Message("system", opening))
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise BadRow("no assistant turn")
    first = next((index for index, role in enumerate(roles) if role == "user"), None)
    if first is None:
        raise BadRow("no user turn")
    last = len(roles) - roles[::-1].index("assistant")
    kept = [m for index, m in enumerate(messages[:last]) if index >= first or m.role == "system"]
    if not any(message.role == "assistant" for message in kept):
        raise BadRow("no assistant turn after the first question")
    return kept


def to_messages(listed: Sequence[Any]) -> Conversation:
    """Read every message of a list."""
    return [_message(item) for item in listed]


def _message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise BadRow("a message is not an object")
    name = item.get("role") or item.get("from")
    role = ROLES.get(str(name).lower())
    if role is None:
        raise BadRow(f"a message of the role {name}" if name else "a message without a role")
    if item.get("tool_calls") or item.get("function_call"):
        raise BadRow("a tool call, which chat templates have no words for")
    content = item["content"] if item.get("content") is not None else item.get("value")
    if content is None and role != "system":
        raise BadRow("a message without content")
    return Message(role, _content(content), train=_learned(item))


def _content(content: Any) -> str:
    if not isinstance(content, Sequence) or isinstance(content, str):
        return to_text(content, "content")
    texts: list[str] = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise BadRow("a message holds something other than text")
        texts.append(to_text(part.get("text"), "content"))
    return "".join(texts)


def _learned(item: Mapping[str, Any]) -> bool:
    loss, weight = item.get("loss"), item.get("weight")
    if isinstance(loss, str):
        words = {"true": True, "1": True, "": True, "none": True, "false": False, "0": False}
        if loss.strip().lower() not in words:
            raise BadRow("loss is neither true nor false")
        loss = words[loss.strip().lower()]
    if weight is not None and weight not in (0, 1):
        raise BadRow("weight is neither 0 nor 1")
    return (loss is None or bool(loss)) and weight != 0


def _image_first(message: Message) -> Message:
    if message.role != "user" or IMAGE not in message.text:
        return message
    rest = message.text.replace(IMAGE, "").strip()
    return Message("user", f"{IMAGE}\n{rest}".strip())
