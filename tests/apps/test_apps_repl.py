"""The terminal conversation, with a model that repeats words."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from xtuner.apps.repl import PROMPT, ask, talk
from xtuner.conversation.chat_model import Delta, EchoChat, Sampling
from xtuner.conversation.message import Conversation
from xtuner.errors import UserError


class Recorder(EchoChat):
    """Repeats words, and keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[list[tuple[str, str]]] = []

    def stream(self, conversation: Conversation, sampling: Sampling, *, tools: Sequence[Any] = ()) -> Iterator[Delta]:
        self.given.append([(message.role, message.text) for message in conversation])
        yield from super().stream(conversation, sampling, tools=tools)


class Failing(EchoChat):
    """Fails in the middle of an answer, in a way that a question may ask for."""

    def stream(self, conversation: Conversation, sampling: Sampling, *, tools: Sequence[Any] = ()) -> Iterator[Delta]:
        question = conversation[-1].text
        if question == "too long":
            raise UserError("The question is too long.", "Shorten it.")
        yield Delta("half")
        if question == "interrupt":
            raise KeyboardInterrupt
        yield Delta(" whole")
        yield Delta(finish="stop")


def typed(text: str) -> Callable[[str], str]:
    """A `read` that returns the lines of `text`, then the end of the input."""
    lines = iter(text.splitlines())

    def read(prompt: str) -> str:
        out.write(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    out = read.__dict__["out"] = io.StringIO()
    return read


def shown(model: Any, text: str, **options: Any) -> str:
    read = typed(text)
    out = read.__dict__["out"]
    talk(model, options.pop("sampling", Sampling()), read=read, out=out, **options)
    return out.getvalue()


def test_exact_words_of_the_course() -> None:
    """compat/cli.md, section chat: prompt, several lines until the first empty one, RESET, EXIT."""
    assert shown(EchoChat(), "one two\nthree\n\nRESET\n\nEXIT\n\nnot read") == (
        f"\n{PROMPT}one two\nthree\n\n{PROMPT}Log: History responses have been removed!\n\n{PROMPT}Log: Exit!\n"
    )
    assert PROMPT == "double enter to end input (EXIT: exit chat, RESET: reset history) >>> "


def test_history_and_reset() -> None:
    model = Recorder()
    shown(model, "a\n\nb c\n\nRESET\n\nd\n\nEXIT\n\n", system="be brief")
    system = ("system", "be brief")
    assert model.given == [
        [system, ("user", "a")],
        [system, ("user", "a"), ("assistant", "a"), ("user", "b c")],
        [system, ("user", "d")],
    ]


@pytest.mark.parametrize("text", ["", "\n\n\n", "   \n\n"])
def test_the_end_of_the_input_is_an_exit(text: str) -> None:
    assert shown(EchoChat(), text).endswith("Log: Exit!\n")
    assert Recorder().given == []


def test_a_last_question_without_an_empty_line_is_answered() -> None:
    assert shown(EchoChat(), "hello there") == f"\n{PROMPT}\nhello there\nLog: Exit!\n"


def test_exit_without_an_empty_line() -> None:
    model = Recorder()
    assert shown(model, "EXIT").endswith("Log: Exit!\n")
    assert model.given == []


def test_ctrl_c_during_an_answer_stops_the_answer() -> None:
    text = shown(Failing(), "interrupt\n\nhello\n")
    assert text == f"\n{PROMPT}half\nLog: Stopped.\n\n{PROMPT}\nhalf whole\nLog: Exit!\n"


def test_ctrl_c_at_the_prompt_exits() -> None:
    def read(prompt: str) -> str:
        raise KeyboardInterrupt

    out = io.StringIO()
    talk(EchoChat(), Sampling(), read=read, out=out)
    assert out.getvalue() == "\n\nLog: Exit!\n"


def test_an_error_is_said_and_the_conversation_goes_on() -> None:
    text = shown(Failing(), "too long\n\nhello\n\n")
    assert "Log: The question is too long. Shorten it.\n" in text
    assert "half whole\n" in text


def test_bytes_that_are_no_text() -> None:
    answers = iter([UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "hi", ""])

    def read(prompt: str) -> str:
        answer = next(answers, EOFError())
        if isinstance(answer, Exception):
            raise answer
        return answer

    out = io.StringIO()
    talk(EchoChat(), Sampling(), read=read, out=out)
    assert "not UTF-8" in out.getvalue()
    assert "hi\n" in out.getvalue()


def test_a_cut_answer_is_said() -> None:
    text = shown(EchoChat(), "a b c d\n\n", sampling=Sampling(max_new_tokens=2))
    assert "a b\nLog: The answer is cut off: it reached 2 tokens" in text


def test_without_streaming_and_with_a_name() -> None:
    assert f"{PROMPT}Mia: a b\n" in shown(EchoChat(), "a b\n\n", bot_name="Mia", streaming=False)
    assert f"{PROMPT}Mia: a b\n" in shown(EchoChat(), "a b\n\n", bot_name="Mia")


@pytest.mark.parametrize("streaming", [True, False])
def test_one_question(streaming: bool) -> None:
    out, model = io.StringIO(), Recorder()
    assert ask(model, "who are you", Sampling(), system="s", streaming=streaming, out=out) == "who are you"
    assert out.getvalue() == "who are you\n"
    assert model.given == [[("system", "s"), ("user", "who are you")]]


def test_bytes_that_are_no_text_are_refused() -> None:
    """Under a C locale Python reads them as lone surrogates, which no tokenizer takes."""
    lines = iter(["\udcff\udcfe", "", "hello", "", "EXIT", ""])
    out = io.StringIO()
    talk(EchoChat(), Sampling(), read=lambda prompt: next(lines), out=out)
    assert "not UTF-8 text" in out.getvalue()
    assert "hello" in out.getvalue()
    with pytest.raises(UserError, match="not UTF-8"):
        ask(EchoChat(), "\udcff", Sampling(), out=out)
