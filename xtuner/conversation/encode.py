"""Owns the step from spans to token ids, for training and for chatting alike; works with any tokenizer object."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from xtuner.conversation.message import Span
from xtuner.errors import UserError

Piece = tuple[list[int], bool]
"""The ids of one span, and whether they are learned."""

CACHED_TEXTS = 20_000
CACHED_CHARS = 512
"""Texts up to this long are remembered: separators and the copies that small data sets are full of."""

PROBES = ("Hello, world! 1234", "你好，世界。", " a\n\n  b\t", "<|im_start|>user\n</s><s>", "\N{GRINNING FACE}é")


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
        elif family.startswith("chatglm"):
            self.bos = [int(index) for index in tokenizer.convert_tokens_to_ids(["[gMASK]", "sop"])]
        else:
            self.bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        self.eos: list[int] = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self._known: dict[str, list[int]] = {}
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._direct = self._free() and self._agrees()

    def encode(self, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
        """Return the ids of `spans`, one after another, and for each id whether it is learned.

        Raises:
            UserError: an EOS is needed and the tokenizer has none, or a span holds a picture.
        """
        pieces = self.encode_many([spans])[0]
        ids = list(chain.from_iterable(ids for ids, _ in pieces))
        trained = [train for ids, train in pieces for _ in ids]
        return ids, trained

    def encode_many(self, rows: Sequence[Sequence[Span]]) -> list[list[Piece]]:
        """Return the pieces of many rendered conversations; all their texts go through the tokenizer at once."""
        if any(span.images for row in rows for span in row):
            raise UserError("A message holds a picture, and this model reads text only.")
        known = self._look_up({span.text for row in rows for span in row if span.mark is None})
        return [[(self._mark(span) if span.mark else known[span.text], span.train) for span in row] for row in rows]

    def fingerprint(self) -> str:
        """Return a hash that is the same for tokenizers that turn texts into the same ids."""
        digest = hashlib.sha256(repr((type(self.tokenizer).__name__, self.bos, self.eos)).encode())
        if hasattr(self.tokenizer, "get_vocab"):
            for token, index in sorted(self.tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
                digest.update(f"{index}:{token}\n".encode("utf-8", "surrogatepass"))
        digest.update(repr(self._tokenize(list(PROBES))).encode())
        return digest.hexdigest()

    def _mark(self, span: Span) -> list[int]:
        if span.mark == "bos":
            return self.bos
        if not self.eos:
            raise UserError(
                "This tokenizer has no end-of-text token, and the chat template needs one.",
                "Name one in the tokenizer options, for instance tokenizer_options.eos_token='<|im_end|>'.",
            )
        return self.eos

    def _look_up(self, texts: Iterable[str]) -> dict[str, list[int]]:
        found = {text: self._known[text] for text in texts if text in self._known}
        missing = [text for text in texts if text not in found]
        if missing:
            new = dict(zip(missing, self._tokenize(missing), strict=True))
            found.update(new)
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
