"""MOSS-003 dialogues: all is learned but the instruction and the answers of tools; turns stay whole."""

from pathlib import Path
from typing import Any

import pytest

from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Message, Span
from xtuner.dataset.encode import Job, encode_rows, to_conversation
from xtuner.dataset.formats.moss import moss
from xtuner.dataset.formats.recognise import recognise
from xtuner.dataset.row import BadRow
from xtuner.model.load import load_tokenizer

TOKENIZER = Path(__file__).parents[1] / "golden" / "internlm2"


def turn(number: int) -> dict[str, str]:
    return {
        "Human": f"<|Human|>: question {number}, MOSS?<eoh>\n",
        "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
        "Commands": '<|Commands|>: Search("it")<eoc>\n',
        "Tool Responses": "<|Results|>:\nSearch => result\n<eor>\n",
        "MOSS": f"<|MOSS|>: answer {number}<eom>\n",
    }


ROW = {"meta_instruction": "You are MOSS.\n", "num_turns": 2, "chat": {"turn_1": turn(1), "turn_2": turn(2)}}


def test_what_is_learned() -> None:
    opening, first, second = moss(ROW).turns
    assert opening == [Span(mark="bos"), Span("You are MOSS.\n")]
    assert "".join(span.text for span in first) == "".join(turn(1).values())
    assert "".join(span.text for span in second if span.train) == "".join(turn(2).values()).replace(
        "\nSearch => result\n", ""
    )
    assert [span.text for span in first if not span.train] == ["\nSearch => result\n"]
    assert first[3:6] == [Span("<|Results|>:", train=True), Span("\nSearch => result\n"), Span("<eor>\n", train=True)]


def test_a_name_for_the_bot() -> None:
    said = "".join(span.text for part in moss(ROW, bot_name="Shu").turns for span in part)
    assert "You are Shu." in said
    assert "<|Shu|>: answer 2" in said
    assert "MOSS" not in said


def test_turns_that_do_not_fit_are_left_out_whole() -> None:
    encoder = Encoder(load_tokenizer(str(TOKENIZER)))
    rows = [(1, ROW)]

    def lengths(max_length: int) -> tuple[list[int], list[int], list[tuple[int, str]]]:
        job = Job("m", "moss", moss, True, None, encoder, max_length)
        chunk = encode_rows(job, rows)
        return chunk.lengths, chunk.truncated, chunk.dropped

    (whole,), cut, _ = lengths(9999)
    assert cut == []
    one_turn: dict[str, Any] = {**ROW, "num_turns": 1}
    (first,) = encode_rows(Job("m", "moss", moss, True, None, encoder, 9999), [(1, one_turn)]).lengths
    assert lengths(whole - 1) == ([first], [1], [])
    assert lengths(first) == ([first], [1], [])
    assert lengths(first - 1)[0] == []
    assert lengths(first - 1)[2] == [(1, "max_length ends before the first answer")]


def test_it_is_recognised_and_can_be_looked_at() -> None:
    assert recognise([ROW], "m.jsonl") == "moss"
    job = Job("m", "moss", moss, True, None, Encoder(load_tokenizer(str(TOKENIZER))), 99)
    talk = to_conversation(job, 1, ROW)
    assert talk[0] == Message("text", "You are MOSS.\n", train=False)
    assert all(message.role == "text" for message in talk)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chat": None}, "no turns in chat"),
        ({"num_turns": 3}, "fewer turns than num_turns"),
        ({"num_turns": "many"}, "num_turns is not a number"),
        ({"chat": {"turn_1": {"Human": ["a"]}}, "num_turns": 1}, "Human is not text"),
    ],
)
def test_rows_that_cannot_be_used(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        moss({**ROW, **change})
