"""Talking in a terminal: reads a question of several lines, shows the answer while it comes, keeps the history."""

import signal
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from xtuner.conversation.chat_model import ChatModel, Sampling
from xtuner.conversation.message import Conversation, Message
from xtuner.errors import UserError

PROMPT = "double enter to end input (EXIT: exit chat, RESET: reset history) >>> "
BROKEN = "\udc80"
"""A lone surrogate: how Python keeps a byte that is not UTF-8 when the terminal's encoding lets it."""


def read_line(prompt: str) -> str:
    """Read one line from the terminal or a pipe.

    Raises:
        EOFError: the input has ended.
        KeyboardInterrupt: Ctrl-C.
    """
    # After a first computation on a CUDA card a read is resumed after Ctrl-C instead of being interrupted:
    # putting Python's handler in again mends that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return input(prompt)


def talk(
    model: ChatModel,
    sampling: Sampling,
    *,
    system: str = "",
    bot_name: str = "",
    streaming: bool = True,
    read: Callable[[str], str] = read_line,
    out: TextIO | None = None,
) -> None:
    """Talk until EXIT, the end of the input, or Ctrl-C at the prompt; Ctrl-C during an answer stops only the answer.

    `read(prompt)` returns one line, or raises EOFError. `bot_name` is written before every answer.
    """
    out = out or sys.stdout
    opening: Conversation = [Message("system", system)] if system else []
    history = list(opening)
    for question in _questions(read, out):
        if question.strip() == "RESET":
            history = list(opening)
            _say(out, "Log: History responses have been removed!\n")
            continue
        history.append(Message("user", question))
        _say(out, f"{bot_name}: " if bot_name else "")
        try:
            answer, note = _answer(model, history, sampling, out if streaming else None)
        except UserError as error:
            history.pop()
            _say(out, f"Log: {error}\n")
            continue
        _say(out, "\n" if streaming else f"{answer}\n")
        _say(out, note)
        if answer:
            history.append(Message("assistant", answer))
        else:
            history.pop()
    _say(out, "Log: Exit!\n")


def ask(
    model: ChatModel,
    question: str,
    sampling: Sampling,
    *,
    system: str = "",
    streaming: bool = True,
    out: TextIO | None = None,
) -> str:
    """Ask one question, write the answer to `out` (a remark about its end to stderr), and return it.

    Raises:
        UserError: the model cannot answer.
    """
    out = out or sys.stdout
    if not _is_text(question):
        raise UserError("The question holds bytes that are not UTF-8 text.", "Type it again.", exit_code=2)
    conversation = [Message("system", system)] if system else []
    conversation.append(Message("user", question))
    answer, note = _answer(model, conversation, sampling, out if streaming else None)
    _say(out, "\n" if streaming else f"{answer}\n")
    _say(sys.stderr, note)
    return answer


def _answer(model: ChatModel, conversation: Conversation, sampling: Sampling, out: TextIO | None) -> tuple[str, str]:
    """Return the answer and a remark about its end; with `out` each piece is written as it comes."""
    text, note = "", ""
    try:
        for delta in model.stream(conversation, sampling):
            text += delta.text
            if out is not None:
                _say(out, delta.text)
            if delta.finish == "length":
                note = (
                    f"Log: The answer is cut off: it reached {sampling.max_new_tokens} tokens or the model's limit.\n"
                )
    except KeyboardInterrupt:
        note = "Log: Stopped.\n"
    return text, note


def _questions(read: Callable[[str], str], out: TextIO) -> Iterator[str]:
    """Yield inputs until EXIT, the end of the input or Ctrl-C. An input ends at its first empty line."""
    while True:
        _say(out, "\n")
        lines: list[str] = []
        ended = False
        try:
            while line := read("" if lines else PROMPT):
                lines.append(line)
        except EOFError:
            ended = True  # what was typed before is still a question
        except UnicodeDecodeError:
            lines = [BROKEN]
        except KeyboardInterrupt:
            lines, ended = [], True
        question = "\n".join(lines)
        if not _is_text(question):
            _say(out, "Log: These bytes are not UTF-8 text. Please type it again.\n")
            question = ""
        if ended:
            _say(out, "\n")
        if question.strip() == "EXIT":
            return
        if question.strip():
            yield question
        if ended:
            return


def _is_text(text: str) -> bool:
    """Whether there is nothing in it that stands for bytes that could not be read."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _say(out: TextIO, text: str) -> None:
    if text:
        out.write(text)
        out.flush()
