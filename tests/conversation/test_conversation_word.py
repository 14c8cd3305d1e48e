"""Texts put together of remembered words have the ids that the tokenizer gives the whole text."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from xtuner.conversation import word
from xtuner.conversation.word import SPLITS, WordMemory, find_space, to_bytes
from xtuner.model.load import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and it's what we'll do: 12 345 times (or more).",
    "Once upon a time there was a fox. 从前有一只狐狸。\n1. One\n2. Two-three",
)
SIGNS = (
    *(" ", " ", " ", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\x1c", "\u200b"),
    *("a", "the", "fox", "X", "dog", "中", "文", "é", "e\u0301", "\u0301", "İ", "\N{GRINNING FACE}"),
    *("▁", "Ġ", "'s", "'", "-", "...", "!", "1", "23", "<0x41>"),
    *("<|im_end|>", "<|im_start|>", "<s>", "</s>", "<unk>"),
)


def byte_level(pattern: str | None = None, digits: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    if pattern:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    if digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return train(tokenizer, pre_tokenizers.ByteLevel.alphabet())


def metaspace(scheme: str, split: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    train(tokenizer, [])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return tokenizer


def prepending() -> Tokenizer:
    tokenizer = metaspace("never", split=True)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def train(tokenizer: Tokenizer, alphabet: list[str]) -> Tokenizer:
    marks = ["<unk>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=marks, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def golden(name: str) -> Tokenizer:
    return load_tokenizer(str(GOLDEN / name)).backend_tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "internlm2": lambda: golden("internlm2"),
    "llama": lambda: golden("llama_tokenizer"),
    "gpt2": byte_level,
    "starcoder": lambda: byte_level(digits=True),
    **{f"split{number}": lambda pattern=pattern: byte_level(pattern) for number, pattern in enumerate(sorted(SPLITS))},
    "first": lambda: metaspace("first", split=False),
    "always": lambda: metaspace("always", split=True),
    "prepend": prepending,
}


def tokenize(backend: Tokenizer) -> Callable[[list[str]], list[list[int]]]:
    return lambda texts: [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]


def memory_of(backend: Tokenizer) -> WordMemory:
    space = find_space(backend)
    assert space
    return WordMemory(space, backend, tokenize(backend))


@pytest.mark.parametrize("kind", KINDS)
def test_words_give_what_the_whole_text_gives(kind: str) -> None:
    backend = KINDS[kind]()
    memory, plain, draw = memory_of(backend), tokenize(backend), random.Random(kind)
    texts = ["".join(draw.choice(SIGNS) for _ in range(draw.randrange(14))) for _ in range(6000)]
    texts += [f"<|im_start|>user\n{text}\n<|im_end|>\n<|im_start|>assistant\n" for text in texts[:2000]]
    for start in range(0, len(texts), 500):
        part = texts[start : start + 500]
        for text, ids, found in zip(part, plain(part), memory.encode(part), strict=True):
            assert found == to_bytes(ids), repr(text)


def test_words_are_asked_for_once() -> None:
    backend, asked = byte_level(), []
    plain = tokenize(backend)

    def listen(texts: list[str]) -> list[list[int]]:
        asked.extend(texts)
        return plain(texts)

    memory = WordMemory("Ġ", backend, listen)
    text = "<|im_start|>user\nThe fox jumps over the fox\n<|im_end|>\n"
    first = memory.encode([text, text])
    asked.clear()
    again = memory.encode([text, "<|im_start|>user\nThe dog jumps over the fox\n<|im_end|>\n"])
    assert again[0] == first[0] == to_bytes(plain([text])[0])
    assert asked == ["a dog"]


def test_the_memory_is_bounded_and_keeps_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word, "MOST_WORDS", 50)
    backend = byte_level()
    memory, plain = memory_of(backend), tokenize(backend)
    for number in range(300):
        text = f"The fox number {number} and word{number} jumps"
        assert memory.encode([text]) == [to_bytes(plain([text])[0])]
        assert len(memory._known) + len(memory._older) < 2 * 50 + 20
    assert "fox" in memory._known | memory._older


def test_texts_that_never_repeat_words_go_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word, "WINDOW", 100)
    backend = byte_level()
    memory, plain = memory_of(backend), tokenize(backend)
    for start in range(0, 1000, 20):
        text = " ".join(f"w{number}" for number in range(start, start + 20))
        assert memory.encode([text]) == [to_bytes(plain([text])[0])]
    assert len(memory._known) < 200


def test_endings_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word, "MOST_TAILS", 3)
    backend = byte_level()
    memory, plain = memory_of(backend), tokenize(backend)
    texts = [f"The fox<|im_end|>{number}" for number in range(20)] * 2
    assert memory.encode(texts) == [to_bytes(ids) for ids in plain(texts)]
    assert len(memory._tails) == 3


def change(backend: Tokenizer, **parts: Any) -> Tokenizer:
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


def with_token(token: AddedToken) -> Tokenizer:
    backend = byte_level()
    backend.add_tokens([token])
    return backend


def crossing() -> Tokenizer:
    """A vocabulary with a token that goes on behind a space."""
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "a▁": 4, "a▁b": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "▁"), ("a▁", "b")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [
        lambda: byte_level(r"\w+ \w+|\s+|."),
        lambda: change(byte_level(), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda: change(byte_level(), normalizer=normalizers.NFKC()),
        lambda: change(metaspace("first", split=False), normalizer=normalizers.Strip()),
        lambda: with_token(AddedToken("<mask>", lstrip=True)),
        lambda: with_token(AddedToken("two words")),
        lambda: Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -1.0)], unk_id=0)),
        lambda: Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1})),
        crossing,
    ],
)
def test_other_kinds_are_refused(make: Callable[[], Tokenizer]) -> None:
    assert find_space(make()) is None


def test_the_refused_vocabulary_would_be_wrong() -> None:
    plain = tokenize(crossing())
    assert plain(["a b"])[0] != plain(["a"])[0] + plain([" b"])[0]
