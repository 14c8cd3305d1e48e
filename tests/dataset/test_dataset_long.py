"""One gigantic row: the tokenizer never sees it whole, memory stays small, and the tokens are those of the whole."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtuner.conversation import encode as conversation_encode
from xtuner.conversation import word
from xtuner.conversation.builtin import find_template
from xtuner.conversation.encode import Encoder
from xtuner.dataset import encode as dataset_encode
from xtuner.dataset.encode import Job, encode_rows
from xtuner.dataset.formats.column import alpaca
from xtuner.dataset.formats.plain import text
from xtuner.dataset.inspection import near_duplicate
from xtuner.dataset.inspection.near_duplicate import WINDOW, signatures
from xtuner.model.load import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
LONG = 2_000
PROSE = "The quick brown fox, number 7, sees  two \tspaces.\nA line\n\nand 我是小书。\n你好 <|im_end|> x=1; don't\n"


class Heard:
    """A tokenizer's backend that remembers the longest text it was given, and how many characters in all."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.longest, self.total = backend, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.longest = max([self.longest, *map(len, texts)])
        self.total += sum(map(len, texts))
        return self.backend.encode_batch_fast(texts, **options)


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word, "LONG", LONG)
    monkeypatch.setattr(conversation_encode, "LONG", LONG)
    monkeypatch.setattr(dataset_encode, "MOST_CHARACTERS", 4 * LONG)


def make_job(name: str, read: Any = alpaca, max_length: int = 64) -> tuple[Job, Heard]:
    encoder = Encoder(load_tokenizer(str(GOLDEN / name)))
    heard = encoder._backend = Heard(encoder._backend)
    return Job("a", "alpaca", read, True, find_template("internlm2_chat"), encoder, max_length), heard


def row(answer: str) -> dict[str, Any]:
    return {"instruction": "Go on.", "input": "", "output": answer}


@pytest.mark.parametrize("name", ["internlm2", "llama_tokenizer", "qwen"])
@pytest.mark.parametrize("words", [False, True])
def test_a_document_in_parts_has_the_tokens_of_the_whole(name: str, words: bool, short_parts: None) -> None:
    job, heard = make_job(name, text)
    if words:
        job.encoder.remember_words()
    document = (PROSE * 300).strip()
    expected = load_tokenizer(str(GOLDEN / name)).encode(document, add_special_tokens=False)
    heard.longest = 0
    chunk = encode_rows(job, [(1, {"text": document})])
    assert chunk.ids[len(job.encoder.bos) :].tolist() == expected
    assert chunk.parted == [1]
    assert 0 < heard.longest < 2 * LONG


def test_of_an_answer_no_more_is_tokenised_than_is_kept(short_parts: None) -> None:
    job, heard = make_job("internlm2")
    heard.total = 0
    chunk = encode_rows(job, [(1, row(PROSE * 1000)), (2, row("Short."))])
    assert chunk.truncated == [1]
    assert chunk.lengths[0] == job.max_length
    assert heard.total < 3 * LONG
    whole, _ = make_job("internlm2", max_length=10**6)
    all_of_it = encode_rows(whole, [(1, row(PROSE * 1000)), (2, row("Short."))])
    assert np.array_equal(chunk.ids[: job.max_length], all_of_it.ids[: job.max_length])
    assert chunk.groups == all_of_it.groups


def test_what_cannot_be_cut_is_left_out_with_a_reason(short_parts: None) -> None:
    job, heard = make_job("internlm2")
    chunk = encode_rows(job, [(1, row("我" * 5 * LONG)), (2, row("Short."))])
    assert chunk.dropped == [(1, dataset_encode.TOO_MUCH)]
    assert chunk.rows == [2]
    assert heard.longest < LONG


def test_signatures_of_a_long_text_take_little_memory() -> None:
    long = "The quick brown fox jumps over the lazy dog. " * 50_000  # 2 MB
    tracemalloc.start()
    signatures([long])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(long) + 90 * WINDOW  # 100 bytes a character would be 225 MB


def test_signatures_do_not_depend_on_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "a", "我是小书。", PROSE * 3, "exactly", PROSE]
    expected = signatures(texts)
    monkeypatch.setattr(near_duplicate, "WINDOW", 7)
    assert np.array_equal(signatures(texts), expected)
