"""What is said: messages, and the spans of text that a template makes of them."""

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool", "text"]
Mark = Literal["bos", "eos"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of one speaker. `text` is a role of its own for plain documents (continued pre-training)."""

    role: Role
    text: str
    train: bool = True
    """False: an assistant's words that are shown but not learned."""
    images: tuple[str, ...] = ()
    calls: tuple[dict[str, Any], ...] = ()
    """Tool calls of an assistant: {"name", "arguments"}."""


Conversation = list[Message]


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a rendered conversation that is tokenised on its own.

    Either `text`, or a `mark` that stands for the tokenizer's BOS or EOS id(s).
    """

    text: str = ""
    train: bool = False
    mark: Mark | None = None
    images: tuple[str, ...] = ()
