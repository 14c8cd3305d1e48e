"""Owns the spelling of a conversation: a `ChatTemplate` turns messages into spans, for training and chatting alike."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from xtuner.conversation.message import Conversation, Message, Span
from xtuner.errors import UserError

SLOT = re.compile(r"\{(system|input|round)\}")


def fill(slot: str, **values: str) -> str:
    """Put `values` into the `{system}`, `{input}`, `{round}` of `slot`, once: braces in the values stay as they are."""
    return "".join([values[part] if index % 2 else part for index, part in enumerate(_parts(slot))])


@functools.cache
def _parts(slot: str) -> tuple[str, ...]:
    """Take a slot apart: every second part is a name."""
    return tuple(SLOT.split(slot))


@dataclass(frozen=True)
class ChatTemplate:
    """How one family of models spells a conversation.

    A turn is: `system` (when there is such a text), `instruction`, the answer, `suffix`, the tokenizer's EOS unless
    the suffix stands for it, `sep`. The answer, the suffix and EOS are learned. BOS opens the conversation and every
    turn that follows an EOS.
    """

    name: str
    instruction: str
    """Holds `{input}`, maybe `{round}` (1, 2, ...)."""
    system: str | None = None
    """Holds `{system}`; None: the family knows no system text."""
    suffix: str = ""
    suffix_as_eos: bool = False
    sep: str = ""
    stop_words: tuple[str, ...] = ()

    def render(self, conversation: Conversation, *, reply: bool = False) -> list[Span]:
        """Spell `conversation`.

        Several system texts of one turn are joined by a newline, several user texts by nothing (as 0.1.x did). An
        answer without a question is a turn with an empty input. With `reply` the result ends where the assistant is to
        speak; it is then a prefix, token by token, of what training sees once the answer is there.

        Raises:
            UserError: a system text for a template without one, tool calls or results, or nothing to reply to.
        """
        spans: list[Span] = []
        systems: list[str] = []
        asked: list[Message] = []
        opening, number = True, 1
        for message in conversation:
            if message.role == "system":
                if message.text:
                    systems.append(message.text)
            elif message.role == "user":
                asked.append(message)
            elif message.role == "assistant":
                spans += self._prompt(systems, asked, number, opening)
                spans += self._answer(message)
                systems, asked = [], []
                opening, number = not self.suffix_as_eos, number + 1
            elif message.role == "text":
                spans += _begin(opening)
                spans += _text(message.text, train=message.train, images=message.images)
                opening = False
            else:
                raise UserError(f"The template {self.name} has no words for a message of the role {message.role}.")
        if systems or asked:
            spans += self._prompt(systems, asked, number, opening)
        elif reply:
            raise UserError("There is nothing to reply to: the conversation does not end with a question.")
        return spans

    def _prompt(self, systems: Sequence[str], asked: Sequence[Message], number: int, opening: bool) -> list[Span]:
        text = fill(self.instruction, input="".join(message.text for message in asked), round=str(number))
        if systems:
            if self.system is None:
                raise UserError(
                    f"The template {self.name} has no place for a system text.",
                    "Remove the system text, or choose another template.",
                )
            text = fill(self.system, system="\n".join(systems)) + text
        images = tuple(image for message in asked for image in message.images)
        return _begin(opening) + _text(text, images=images)

    def _answer(self, message: Message) -> list[Span]:
        if message.calls:
            raise UserError(f"The template {self.name} has no words for tool calls.")
        spans = _text(message.text + self.suffix, train=message.train)
        if not self.suffix_as_eos:
            spans.append(Span(mark="eos", train=message.train))
        return spans + _text(self.sep)


def _begin(opening: bool) -> list[Span]:
    return [Span(mark="bos")] if opening else []


def _text(text: str, *, train: bool = False, images: tuple[str, ...] = ()) -> list[Span]:
    return [Span(text, train=train, images=images)] if text or images else []
