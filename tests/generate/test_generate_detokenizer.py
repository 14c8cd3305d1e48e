"""Text that comes piece by piece: whole characters, no stop words, no special tokens."""

import json
from functools import cache
from typing import Any

import pytest
from tiny import GOLDEN
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xtuner.generate.detokenizer import BROKEN, MAX_PENDING, Detokenizer, special_ids
from xtuner.model.load import load_tokenizer

TEXT = "Hello, 你好！  two  spaces\n\ttab 🤗👩‍👩‍👧 ﷽ naïve 𝔘𝔫𝔦 end."


@cache
def tokenizer(name: str) -> Any:
    if name == "bytes":
        # every byte a token: the hardest case for whole characters
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        core = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", extra_special_tokens=["<|call|>"])
    return load_tokenizer(str(GOLDEN / name))


NAMES = ("bytes", "internlm2", "internlm2_tok_old", "llama_tokenizer")


def pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    found = []
    for index in ids:
        found.append(detokenizer.push(index))
        if detokenizer.stopped:
            break
    return [*found, detokenizer.finish()]


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_are_the_text(name: str) -> None:
    ids = tokenizer(name).encode(TEXT, add_special_tokens=False)
    got = pieces(Detokenizer(tokenizer(name)), ids)
    assert "".join(got) == TEXT
    assert all(BROKEN not in piece for piece in got)
    assert sum(bool(piece) for piece in got) > 20, "it comes in pieces"


@pytest.mark.parametrize("name", ["internlm2", "llama_tokenizer"])
def test_golden_strings(name: str) -> None:
    """What the original tokenizers decode (fixtures README, golden_tokenizer.json), special tokens included."""
    compared = 0
    golden = json.loads((GOLDEN / name / "golden_tokenizer.json").read_text("utf-8"))["tokenizers"]
    for row in golden["fast"]["cases"]:
        ids = row["ids_no_special"]
        whole = row["decode_no_special_ids"]
        got = "".join(pieces(Detokenizer(tokenizer(name), show_special=True), ids))
        assert got == whole.rstrip(BROKEN), row
        compared += 1
    assert compared >= 30


@pytest.mark.parametrize("name", NAMES)
def test_an_unfinished_character_is_never_shown(name: str) -> None:
    ids = tokenizer(name).encode("ok 🤗", add_special_tokens=False)
    assert "".join(pieces(Detokenizer(tokenizer(name)), ids[:-1])) == "ok "


def test_bytes_that_never_become_a_character_do_not_block() -> None:
    tok = tokenizer("bytes")
    lead = tok.encode("é", add_special_tokens=False)[0]
    got = pieces(Detokenizer(tok), [lead] * (MAX_PENDING + 1) + tok.encode("end", add_special_tokens=False))
    assert "".join(got).endswith("end")


def test_special_tokens_are_hidden_or_shown() -> None:
    tok = tokenizer("internlm2")
    ids = tok.encode("a<|action_start|>b<|im_end|>c", add_special_tokens=False)
    assert "".join(pieces(Detokenizer(tok), ids)) == "abc"
    assert "".join(pieces(Detokenizer(tok, show_special=True), ids)) == "a<|action_start|>b<|im_end|>c"
    assert {tok.convert_tokens_to_ids(word) for word in ("<|im_end|>", "<|action_start|>", "</s>")} <= special_ids(tok)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("word", ["STOP", "\n\nUser:", "。停"])
def test_a_stop_word_over_several_tokens(name: str, word: str) -> None:
    ids = tokenizer(name).encode(f"an answer{word} and more", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer(name), ["", "never", word])
    assert "".join(pieces(detokenizer, ids)) == "an answer"
    assert detokenizer.stopped


def test_a_stop_word_of_special_tokens() -> None:
    tok = tokenizer("internlm2")
    ids = tok.encode("bye<|im_end|>\nnext", add_special_tokens=False)
    for word in ("<|im_end|>", "<|im_end|>\n", "ye<|im_end|>\nn"):
        detokenizer = Detokenizer(tok, [word])
        assert "".join(pieces(detokenizer, ids)) == "bye"[: 1 if word.startswith("y") else 3]
        assert detokenizer.stopped


def test_what_only_looks_like_a_stop_word_comes_out() -> None:
    tok = tokenizer("bytes")
    ids = tok.encode("STO STOSTA STO", add_special_tokens=False)
    got = pieces(Detokenizer(tok, ["STOP"]), ids)
    assert "".join(got) == "STO STOSTA STO"
    assert got[-1] == "STO", "held back until it was clear"


def test_the_earliest_stop_word_wins() -> None:
    tok = tokenizer("bytes")
    ids = tok.encode("one two three", add_special_tokens=False)
    assert "".join(pieces(Detokenizer(tok, ["three", "two", "one two thr"]), ids)) == "one "
