"""Ids become text while they come: whole characters only, stop words never shown, special tokens hidden."""

from collections.abc import Sequence
from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder puts for bytes that are no whole character (yet)."""
MAX_PENDING = 8
"""A character has at most 4 bytes, so this many tokens without a whole one are not the beginning of one."""


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that steer a conversation and are not words of it."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {int(index) for index, token in added.items() if token.special}


class Detokenizer:
    """Gives the text of an answer piece by piece.

    A stop word is found wherever it appears in the raw text (special tokens included), also across tokens; nothing of
    it, and nothing after it, is given out.
    """

    def __init__(self, tokenizer: Any, stop_words: Sequence[str] = (), *, show_special: bool = False) -> None:
        self.stopped = False
        """Whether a stop word was met."""
        self._tokenizer = tokenizer
        self._stop_words = tuple(word for word in stop_words if word)
        self._hidden = frozenset() if show_special else special_ids(tokenizer)
        self._ids: list[int] = []
        self._num_before = 0  # ids before the new ones that are decoded again, since spaces depend on neighbours
        self._held: list[tuple[str, bool]] = []  # characters that may begin a stop word, and whether they are shown

    def push(self, token: int) -> str:
        """Take the next id; return the text that is certain now, often of earlier ids too."""
        self._ids.append(token)
        before = self._decode(self._ids[: self._num_before])
        text = self._decode(self._ids)
        num_new = len(self._ids) - self._num_before
        if text.endswith(BROKEN) and token not in self._hidden and num_new < MAX_PENDING:
            return ""
        del self._ids[: self._num_before]
        self._num_before = num_new
        return self._release(text[len(before) :], shown=token not in self._hidden)

    def finish(self) -> str:
        """Return what was held back; an incomplete character at the end is dropped."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[: self._num_before])
        rest = self._decode(self._ids)[len(before) :].rstrip(BROKEN)
        self._num_before = len(self._ids)
        text = self._release(rest, shown=True)
        if not self.stopped:
            text += "".join(character for character, shown in self._held if shown)
            self._held = []
        return text

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return self._tokenizer.decode(
            ids,
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=False,
        )

    def _release(self, text: str, *, shown: bool) -> str:
        self._held += [(character, shown) for character in text]
        raw = "".join(character for character, _ in self._held)
        ends = [place for word in self._stop_words if (place := raw.find(word)) >= 0]
        if ends:
            self.stopped = True
            keep = min(ends)
        else:
            keep = len(raw) - max((_overlap(raw, word) for word in self._stop_words), default=0)
        out = "".join(character for character, visible in self._held[:keep] if visible)
        self._held = [] if self.stopped else self._held[keep:]
        return out


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` that begins `word`."""
    return next((size for size in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:size])), 0)
