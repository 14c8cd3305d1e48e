"""Rows become ids and labels as 0.1.21 made them, cut at max_length; what teaches nothing is left out with a reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtuner.conversation.builtin import find_template
from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Message
from xtuner.dataset.encode import NOTHING, TOO_LONG, Chunk, Job, encode_rows
from xtuner.dataset.formats.plain import text
from xtuner.dataset.formats.turn import conversation
from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
DATA = GOLDEN / "xtuner_data"
FOLDERS = ("internlm2", "llama_tokenizer")


def read(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


TURNS = read("conversations.json")
COMBOS = [combo for combo in read("expected_encode.json")["combos"] if combo["tokenizer"] in FOLDERS]
PLAIN_CASES = [case for case in read("expected_process.json")["cases"] if not case["pack_to_max_length"]]


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    return {name: Encoder(load_tokenizer(str(GOLDEN / name))) for name in FOLDERS}


def job(encoder: Encoder, template: str | None = "internlm2_chat", max_length: int = 2048, **options: Any) -> Job:
    values = {"label": "data.json", "format_name": "conversation", "read": conversation, "own": True} | options
    return Job(template=find_template(template or "plain"), encoder=encoder, max_length=max_length, **values)


def samples(chunk: Chunk) -> list[dict[str, list[int]]]:
    labels = np.where(chunk.trained, chunk.ids, -100)
    ends = np.cumsum(chunk.lengths)[:-1]
    parts = zip(np.split(chunk.ids, ends), np.split(labels, ends), strict=True)
    return [{"input_ids": ids.tolist(), "labels": row.tolist()} for ids, row in parts] if chunk.lengths else []


def talks(template: str | None) -> list[tuple[int, dict[str, Any]]]:
    """The golden conversations; without a template 0.1.x left system texts out."""
    rows = [[{**turn, "system": turn.get("system") if template else None} for turn in turns] for turns in TURNS]
    return [(index, {"conversation": turns}) for index, turns in enumerate(rows)]


@pytest.mark.parametrize("combo", COMBOS, ids=lambda combo: f"{combo['tokenizer']}-{combo['template']}")
def test_cut_samples_equal_the_golden_ones(combo: dict[str, Any], encoders: dict[str, Encoder]) -> None:
    long = {int(index): sample for index, sample in combo["encoded_max48"].items()}
    chunk = encode_rows(job(encoders[combo["tokenizer"]], combo["template"], 48), talks(combo["template"]))
    ours = dict(zip(chunk.rows, samples(chunk), strict=True))
    for index, expected in long.items():
        if any(label != -100 for label in expected["labels"]):
            assert ours[index] == expected
            assert index in chunk.truncated
        else:
            assert index in dict(chunk.dropped)
    for index in set(ours) - set(long):
        assert ours[index] == combo["encoded"][index]
        assert index not in chunk.truncated


@pytest.mark.parametrize("case", PLAIN_CASES, ids=lambda case: str(case["template"]))
def test_the_golden_pipeline_without_packing(case: dict[str, Any], encoders: dict[str, Encoder]) -> None:
    chunk = encode_rows(job(encoders[case["tokenizer"]], case["template"], 64), talks(case["template"]))
    expected = [{key: row[key] for key in ("input_ids", "labels")} for row in case["rows"]]
    assert samples(chunk) == expected
    assert chunk.lengths == case["length"]
    assert len(chunk.dropped) == len(TURNS) - len(expected)


def test_reasons_of_what_is_left_out(encoders: dict[str, Encoder]) -> None:
    rows = [
        (1, {"conversation": [{"input": "a", "output": "b", "output_with_loss": False}]}),
        (2, {"conversation": [{"input": "long " * 50, "output": "b"}]}),
        (3, {"conversation": [{"input": "half \ud83d", "output": "b"}]}),
        (4, {"conversation": []}),
        (5, {"conversation": [{"input": "a", "output": "b"}]}),
    ]
    chunk = encode_rows(job(encoders["internlm2"], max_length=60), rows)
    surrogate = "a broken character (half of a surrogate pair)"
    assert sorted(chunk.dropped) == [(1, NOTHING), (2, TOO_LONG), (3, surrogate), (4, "an empty conversation")]
    assert chunk.rows == [5]
    assert chunk.num_rows == 5
    prompt = find_template("internlm2_chat").render([Message("user", "long " * 50)], reply=True)
    assert chunk.shortest_prompt == len(encoders["internlm2"].encode(prompt)[0])


def test_copies_are_in_one_group(encoders: dict[str, Encoder]) -> None:
    one, other = {"input": "a", "output": "b"}, {"input": "a", "output": "c"}
    silent = {**one, "output_with_loss": False}
    rows = [[one, other], [one, other], [one], [silent, other]]
    chunk = encode_rows(job(encoders["internlm2"]), [(n, {"conversation": row}) for n, row in enumerate(rows)])
    assert chunk.groups[0] == chunk.groups[1]
    assert len(set(chunk.groups)) == 3


def test_long_texts_are_learned_in_parts(encoders: dict[str, Encoder]) -> None:
    encoder = encoders["internlm2"]
    words = "once upon a time " * 40
    whole, _ = encoder.encode(find_template("plain").render([Message("text", words.strip())]))
    chunk = encode_rows(job(encoder, read=text, max_length=50), [(1, {"text": words}), (2, {"text": "short one"})])
    assert np.concatenate(np.split(chunk.ids, np.cumsum(chunk.lengths))[:-2]).tolist() == whole
    assert max(chunk.lengths) == 50
    assert chunk.rows == [1] * (len(chunk.rows) - 1) + [2]
    assert chunk.parted == [1]
    assert chunk.truncated == []
    assert len(set(chunk.groups)) == 2
    assert chunk.trained[1:50].all()
    assert not chunk.trained[0]


def test_renaming_and_a_system_text(encoders: dict[str, Encoder]) -> None:
    options = {"rename": {"talk": "conversation"}, "system": "Be kind."}
    rows = [
        (1, {"talk": [{"input": "a", "output": "b"}]}),
        (2, {"talk": [{"system": "S", "input": "a", "output": "b"}]}),
    ]
    chunk = encode_rows(job(encoders["internlm2"], **options), rows)
    tokenizer = encoders["internlm2"].tokenizer
    first, second = (tokenizer.decode(sample["input_ids"]) for sample in samples(chunk))
    assert "system\nBe kind.<|im_end|>" in first
    assert "system\nS<|im_end|>" in second
    assert "Be kind" not in second


def foreign(result: Any, encoder: Encoder) -> Chunk:
    def read(row: Any) -> Any:
        return result(row) if callable(result) else result

    return encode_rows(job(encoder, read=read, own=False, format_name="mine.py:read"), [(7, {"q": "a"})])


def test_functions_of_users(encoders: dict[str, Encoder]) -> None:
    encoder = encoders["internlm2"]
    turns = [{"input": "a", "output": "b"}]
    messages = [Message("user", "a"), Message("assistant", "b")]
    made = [samples(foreign(result, encoder)) for result in ({"conversation": turns}, turns, messages)]
    assert made[0] == made[1] == made[2]
    assert made[0]
    assert foreign({"conversation": []}, encoder).dropped == [(7, "an empty conversation")]
    with pytest.raises(UserError, match=r"mine.py:read failed on row 7 of data.json \(KeyError: 'x'\)"):
        foreign(lambda row: row["x"], encoder)
    with pytest.raises(UserError, match="returned str for row 7"):
        foreign("text", encoder)


def test_conversations_without_a_template_are_an_error(encoders: dict[str, Encoder]) -> None:
    bare = Job("data.json", "conversation", conversation, True, None, encoders["internlm2"], 100)
    with pytest.raises(UserError, match="does not say which chat template") as caught:
        encode_rows(bare, [(1, {"conversation": [{"input": "a", "output": "b"}]})])
    assert "data.template" in caught.value.fix
    assert "internlm2_chat" in caught.value.fix
