"""Owns the step from spans to token ids, for training and for chatting alike; works with any tokenizer object."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from xtuner.conversation.message import Span
from xtuner.conversation.word import LONG, WordMemory, anchor_of, find_space, to_bytes, to_parts
from xtuner.errors import UserError

Piece = tuple[bytes, bool]
"""The ids of one span as int32, and whether they are learned."""

CACHED_TEXTS = 20_000
CACHED_CHARS = 512
"""Texts up to this long are remembered: separators and the copies that small data sets are full of."""

CHATGLM_BOS = ("[gMASK]", "sop")
"""Tokens that say which family a tokenizer is of, where its class does not: saved ones have a generic class."""

CHATGLM_ROLES = ("<|user|>", "<|assistant|>")
"""Special tokens of its third generation."""

PROBES = (
    "Hello, world! 1234",
    "你好，世界。",
    " a\n\n  b\t",
    "<|im_start|>user\n</s><s>",
    "\N{GRINNING FACE}é",
    "It's what we'll do: 12 345 \"times\" (or more), isn't it?\n1. One\n2. two-three e\u0301 \u0301a \u00a0b\n",
    "def f(x):\n    return x  # twice  two ",
)


class Encoder:
    """Turns spans into ids with one tokenizer: `encode(text, add_special_tokens=False)` and the ids of BOS and EOS.

    Every span is tokenised alone. BOS and EOS are the tokenizer's, with two exceptions known from 0.1.x: Qwen has no
    BOS, and ChatGLM opens with [gMASK] and sop.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        family = type(tokenizer).__name__.lower()
        if family.startswith("qwen"):
            self.bos: list[int] = []
        elif family.startswith("chatglm") or _knows(tokenizer, CHATGLM_BOS):
            self.bos = [int(index) for index in tokenizer.convert_tokens_to_ids(list(CHATGLM_BOS))]
        else:
            self.bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        self.eos: list[int] = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self._known: dict[str, bytes] = {}
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._direct = self._free() and self._agrees()
        self.words: WordMemory | None = None
        """What `encode_many` remembers after `remember_words`; None: it asks the tokenizer for every text."""

    def encode(self, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
        """Return the ids of `spans`, one after another, and for each id whether it is learned.

        Raises:
            UserError: an EOS is needed and the tokenizer has none, or a span holds a picture.
        """
        ids: list[int] = []
        trained: list[bool] = []
        for span in spans:
            self._refuse_pictures(span)
            piece = self._mark(span) if span.mark else self._tokenize([span.text])[0]
            ids += piece
            trained += [span.train] * len(piece)
        return ids, trained

    def encode_many(self, rows: Sequence[Sequence[Span]], *, enough: int | None = None) -> list[list[Piece]]:
        """Return the pieces of many rendered conversations: what `encode` gives, much faster.

        Of a very long text that is learned, no more than its beginning is tokenised: at least `enough` tokens.

        Raises:
            UserError: as `encode`.
        """
        texts: list[str] = []
        long: dict[int, int | None] = {}
        for row in rows:
            for span in row:
                self._refuse_pictures(span)
                if span.mark is None:
                    if len(span.text) > LONG:
                        long[len(texts)] = enough if span.train else None
                    texts.append(span.text)
        encoded = iter(self._encode_parts(texts, long) if long else self._encode_texts(texts))
        marks = {mark: to_bytes(ids) for mark, ids in (("bos", self.bos), ("eos", self.eos))}
        if not self.eos:
            for span in (span for row in rows for span in row):
                self._mark(span)
        return [[(marks[span.mark] if span.mark else next(encoded), span.train) for span in row] for row in rows]

    def remember_words(self) -> None:
        """Make `encode_many` faster by a memory of words, if the tokenizer is of a kind for which that is exact."""
        space = find_space(self._backend) if self.words is None and self._direct else None
        if space is not None:
            words = WordMemory(space, self._backend, self._tokenize)
            if words.encode(PROBES) == [to_bytes(ids) for ids in self._tokenize(list(PROBES))]:
                self.words = words

    def fingerprint(self) -> str:
        """Return a hash that is the same for tokenizers that turn texts into the same ids."""
        digest = hashlib.sha256(repr((type(self.tokenizer).__name__, self.bos, self.eos)).encode())
        if hasattr(self.tokenizer, "get_vocab"):
            for token, index in sorted(self.tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
                digest.update(f"{index}:{token}\n".encode("utf-8", "surrogatepass"))
        digest.update(repr(self._tokenize(list(PROBES))).encode())
        return digest.hexdigest()

    def _refuse_pictures(self, span: Span) -> None:
        if span.images:
            raise UserError("A message holds a picture, and this model reads text only.")

    def _mark(self, span: Span) -> list[int]:
        if span.mark == "bos":
            return self.bos
        if span.mark == "eos" and not self.eos:
            raise UserError(
                "This tokenizer has no end-of-text token, and the chat template needs one.",
                "Name one in the tokenizer options, for instance tokenizer_options.eos_token='<|im_end|>'.",
            )
        return self.eos

    def longest_part(self, text: str) -> int:
        """Return how many characters of `text` the tokenizer has to take at once."""
        return max(map(len, self._parts(text)))

    def _parts(self, text: str) -> list[str]:
        return to_parts(text, self._backend) if self._direct else [text]

    def _encode_parts(self, texts: Sequence[str], long: Mapping[int, int | None]) -> list[bytes]:
        """Encode texts of which those at the places `long` are very long; of these that many tokens are enough."""
        short = iter(self._encode_texts([text for at, text in enumerate(texts) if at not in long]))
        return [self._encode_long(text, long[at]) if at in long else next(short) for at, text in enumerate(texts)]

    def _encode_long(self, text: str, enough: int | None) -> bytes:
        first, *others = self._parts(text)
        found = bytearray(self._encode_texts([first])[0])
        for part in others:
            if enough is not None and len(found) >= len(to_bytes([0])) * enough:
                break
            anchor = anchor_of(part)
            known, ids = self._encode_texts([anchor, anchor + part])
            found += ids[len(known) :]
        return bytes(found)

    def _encode_texts(self, texts: Sequence[str]) -> list[bytes]:
        return self.words.encode(texts) if self.words else self._look_up(texts)

    def _look_up(self, texts: Sequence[str]) -> list[bytes]:
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        new = dict(zip(missing, map(to_bytes, self._tokenize(missing)), strict=True))
        found = [new[text] if text in new else self._known[text] for text in texts]
        if len(self._known) + len(new) > CACHED_TEXTS:
            self._known.clear()
        self._known.update((text, ids) for text, ids in new.items() if len(text) <= CACHED_CHARS)
        return found

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if self._direct and self._free():
            return self._tokenize_directly(texts)
        return [list(self.tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    def _tokenize_directly(self, texts: list[str]) -> list[list[int]]:
        """Use the `tokenizers` object below a fast tokenizer: many times faster for many texts."""
        return [found.ids for found in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _free(self) -> bool:
        """Whether there is such an object, and nobody has told it to cut or pad."""
        return hasattr(self._backend, "encode_batch_fast") and self._backend.truncation is self._backend.padding is None

    def _agrees(self) -> bool:
        singly = [list(self.tokenizer.encode(text, add_special_tokens=False)) for text in PROBES]
        return self._tokenize_directly(list(PROBES)) == singly


def reads_roles_as_text(tokenizer: Any) -> bool:
    """Whether a tokenizer of ChatGLM3 would take the words for roles in a template apart, as it does if it is opened
    without `encode_special_tokens`; the model was trained on one token for each."""
    return getattr(tokenizer, "split_special_tokens", False) and _knows(tokenizer, CHATGLM_ROLES)


def _knows(tokenizer: Any, tokens: Sequence[str]) -> bool:
    return hasattr(tokenizer, "get_vocab") and set(tokens) <= tokenizer.get_vocab().keys()
