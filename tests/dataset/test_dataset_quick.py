"""The quick way to ids is proved on the rows themselves, and given up where it would differ."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtuner.config.spec import SourceSpec
from xtuner.conversation.builtin import find_template
from xtuner.conversation.encode import Encoder
from xtuner.conversation.word import WordMemory, to_bytes
from xtuner.dataset.encode import Chunk, Job, encode_rows
from xtuner.dataset.formats.column import alpaca
from xtuner.dataset.parallel import encode_source
from xtuner.dataset.source import Source, open_source
from xtuner.model.load import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
ROWS = [
    {
        "instruction": f"Tell me about number {n}.",
        "input": "" if n % 3 else "In short,  please.",
        "output": f"It is {n}.\n",
    }
    for n in range(1200)
]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return open_source(SourceSpec(path=str(tmp_path / "a.jsonl")))


def job(name: str, max_length: int = 64) -> Job:
    encoder = Encoder(load_tokenizer(str(GOLDEN / name)))
    return Job("a", "alpaca", alpaca, True, find_template("internlm2_chat"), encoder, max_length)


def equal(one: list[Chunk], other: list[Chunk]) -> bool:
    return all(
        np.array_equal(a.ids, b.ids) and np.array_equal(a.trained, b.trained) and a.lengths == b.lengths
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", ["internlm2", "llama_tokenizer"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_quick_way_makes_what_the_plain_way_makes(name: str, workers: int, source: Source) -> None:
    plain = job(name)
    rows = list(enumerate(source.rows(), 1))
    expected = [encode_rows(plain, rows[start : start + 500]) for start in range(0, len(rows), 500)]
    assert plain.encoder.words is None
    quick = job(name)
    assert equal(list(encode_source(quick, source, workers=workers)), expected)
    assert quick.encoder.words is not None


@pytest.mark.parametrize("workers", [1, 2])
def test_it_is_given_up_where_it_differs(workers: int, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    right = WordMemory.encode

    def wrong(self: WordMemory, texts: Any) -> list[bytes]:
        found = right(self, texts)
        return [ids if "number" not in text else ids + to_bytes([5]) for text, ids in zip(texts, found, strict=True)]

    expected = list(encode_source(job("internlm2"), source, workers=1))
    monkeypatch.setattr(WordMemory, "encode", wrong)
    doubtful = job("internlm2")
    assert equal(list(encode_source(doubtful, source, workers=workers)), expected)
    assert doubtful.encoder.words is None


def test_a_slow_tokenizer_has_no_quick_way(source: Source) -> None:
    class Letters:
        bos_token_id, eos_token_id = 1, 2

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [ord(letter) for letter in text]

    plain = Job("a", "alpaca", alpaca, True, find_template("internlm2_chat"), Encoder(Letters()), 256)
    chunks = list(encode_source(plain, source, workers=1))
    assert plain.encoder.words is None
    assert sum(len(chunk.lengths) for chunk in chunks) == len(ROWS)
