"""A model one can talk to: the single interface of terminal, page, server, agent and evaluation."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from xtuner.conversation.message import Conversation
from xtuner.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn; `temperature` <= 0 is greedy, `top_k` 0 is off.

    Raises:
        UserError: a value that makes no sense (exit code 2).
    """

    max_new_tokens: int = 2048
    temperature: float = 0.1
    top_k: int = 40
    top_p: float = 0.75
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_words: tuple[str, ...] = ()
    """Further texts that end an answer, beside those of the template."""

    def __post_init__(self) -> None:
        for what, value, fits, allowed in (
            ("number of new tokens", self.max_new_tokens, self.max_new_tokens > 0, "above 0"),
            (
                "temperature",
                self.temperature,
                math.isfinite(self.temperature),
                "a number; 0 always takes the likeliest",
            ),
            ("repetition penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "above 0"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top-k", self.top_k, self.top_k >= 0, "0 (off) or above"),
        ):
            if not fits:
                raise UserError(f"The {what} is {value}.", f"It must be {allowed}.", exit_code=2)


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer; the last one says why it ended."""

    text: str = ""
    finish: Literal["stop", "length"] | None = None
    calls: tuple[dict[str, Any], ...] = ()


class ChatModel(Protocol):
    """Answers a conversation, piece by piece."""

    def stream(self, conversation: Conversation, sampling: Sampling, *, tools: Sequence[Any] = ()) -> Iterator[Delta]:
        """Yield the answer to the last message; never changes `conversation`."""
        ...


class EchoChat:
    """A `ChatModel` without a model: repeats the last message word by word. Tests every app."""

    def stream(self, conversation: Conversation, sampling: Sampling, *, tools: Sequence[Any] = ()) -> Iterator[Delta]:
        """Yield the words of the last message, at most `sampling.max_new_tokens` of them."""
        words = conversation[-1].text.split(" ")
        for index, word in enumerate(words[: sampling.max_new_tokens]):
            yield Delta(word if index == 0 else f" {word}")
        yield Delta(finish="length" if len(words) > sampling.max_new_tokens else "stop")
