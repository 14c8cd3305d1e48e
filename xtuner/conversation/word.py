"""Owns the quick way from many texts to ids: most words were met before, and then the tokenizer need not be asked.

A text is cut at its single spaces. For the tokenizers that `find_space` accepts, the ids of a text are the ids of its
words one after another, whatever stands around them: no merge and no pre-tokenizer reaches across such a space.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

ANCHOR = "a"
"""A word inside a text is tokenised behind this one, so that nothing of what begins a text is taken for its own."""
MOST_WORDS = 300_000
"""As many again are kept that were not met lately: together at most about 120 MB."""
LONGEST_WORD = 80
MOST_TAILS = 16
"""Endings of texts that begin with a special token: templates have few."""
JOINED = 128
"""New words that are tokenised as one text."""
LONG = 1 << 17
"""Longer texts (characters) are tokenised part by part: a tokenizer takes 150 bytes and more for each character."""
BETWEEN_WORDS = re.compile(r"[A-Za-z](?= [A-Za-z])")
"""Where a text may be cut for tokenizers that `find_space` accepts."""
BETWEEN_LINES = re.compile(BETWEEN_WORDS.pattern + r"|\S\n(?=[A-Za-z\u4e00-\u9fff])")
"""The same where no token goes on behind a line break."""
WINDOW, WORTH = 200_000, 0.25
"""When of so many words a larger share is new, remembering words costs more than it saves."""

SIGNS = "".join(map(chr, range(9, 128)))
CUT = re.compile(r"( ?[A-Za-z]+)([^A-Za-z0-9 ].*?) ?", re.DOTALL)
"""A key with a head of letters and a rest that begins with a sign."""

Tokenize = Callable[[list[str]], list[list[int]]]

# Patterns of pre-tokenizers that look from left to right, and of which no match goes on from another sign to a space.
SPLITS = {
    # GPT-2
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Llama 3, Qwen 2 and Qwen 3.5
    *(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?" + letters + digits + "| ?[^" + others + r"]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        for letters, digits, others in (
            (r"\p{L}+", r"|\p{N}{1,3}", r"\s\p{L}\p{N}"),
            (r"\p{L}+", r"|\p{N}", r"\s\p{L}\p{N}"),
            (r"[\p{L}\p{M}]+", r"|\p{N}", r"\s\p{L}\p{M}\p{N}"),
        )
    ),
}


def find_space(backend: Any) -> str | None:
    """Return the sign for a space in the tokens of a `tokenizers.Tokenizer` whose words may be tokenised alone.

    None: it is of a kind for which that is not known to be exact.
    """
    model = backend.model
    if type(model).__name__ != "BPE" or model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    added = list(backend.get_added_tokens_decoder().values())
    if any(t.lstrip or t.rstrip or t.single_word or re.search(r"\s", t.content) for t in added):
        return None
    steps = [*_steps(backend.normalizer), *_steps(backend.pre_tokenizer)]
    if steps and steps[-1]["type"] == "ByteLevel":
        return "Ġ" if all(map(_parts_before_spaces, steps)) else None
    if model.ignore_merges or not steps or not all(map(_writes_spaces, steps)):
        return None
    names = {token.content for token in added}
    tokens = [token for token in backend.get_vocab() if token not in names]
    return "▁" if "▁" in tokens and not any(re.search("[^▁]▁", token) for token in tokens) else None


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer as their settings."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    if state["type"] != "Sequence":
        return [state]
    return list(state.get("normalizers") or state.get("pretokenizers") or [state])


def _parts_before_spaces(step: dict[str, Any]) -> bool:
    """Byte-level tokenizers: does this step part a text before a space, without looking at what comes earlier?"""
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    if step["type"] == "Split":
        plain = step["behavior"] == "Isolated" and not step["invert"]
        return plain and step["pattern"].get("Regex") in SPLITS
    return step["type"] in ("NFC", "Digits")


def _writes_spaces(step: dict[str, Any]) -> bool:
    """Tokenizers of sentencepiece's kind: does this step do no more than to write spaces as ▁?"""
    if step["type"] == "Replace":
        return step["pattern"] == {"String": " "} and step["content"] == "▁"
    if step["type"] == "Prepend":
        return step["prepend"] == "▁"
    return step["type"] == "Metaspace" and step["replacement"] == "▁"


def to_parts(text: str, backend: Any) -> list[str]:
    """Cut a text into parts of about LONG characters whose ids, one after another, are those of the text.

    A part that begins with a space, or follows a line break, has to be tokenised behind `anchor_of(part)`. Where there
    is no place to cut, or the tokenizer is of another kind, a part is as long as it is.
    """
    space = find_space(backend) if len(text) > LONG else None
    if space is None:
        return [text]
    apart = space == "Ġ" or not any(re.search(r"\n[^\n]", token) for token in backend.get_vocab())
    safe = BETWEEN_LINES if apart else BETWEEN_WORDS
    parts: list[str] = []
    at = 0
    while len(text) - at > LONG and (place := safe.search(text, at + LONG)):
        parts.append(text[at : place.end()])
        at = place.end()
    return [*parts, text[at:]]


def anchor_of(part: str) -> str:
    """Return what stands for the text before a part that is not the first: the end of a word, or of a line."""
    return ANCHOR if part.startswith(" ") else f"{ANCHOR}\n"


class WordMemory:
    """The ids of words, as bytes of int32. Keys: " word" begins a text, "word " ends it, " word " is all of it."""

    def __init__(self, space: str, backend: Any, tokenize: Tokenize) -> None:
        self._space, self._tokenize = space, tokenize
        self._known: dict[str, bytes] = {}
        self._older: dict[str, bytes] = {}
        self._tails: dict[str, bytes] = {}
        added = backend.get_added_tokens_decoder()
        self._added = tuple(token.content for token in added.values())
        self._marks = [token.content for token in added.values() if not token.normalized]
        longest_first = sorted(self._marks, key=len, reverse=True)
        self._mark = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        vocabulary = backend.get_vocab()
        self._opening = {index for token, index in vocabulary.items() if token.startswith(space) and index not in added}
        # Behind a letter, words are cut before signs that no token joins to a letter: "word," is "word" and ",". Signs
        # that are no tokens might become one with an unknown letter; byte-level tokenizers part the two before that.
        joined = set(re.findall(r"[A-Za-z]([^A-Za-z0-9\0])", "\0".join((*vocabulary, *self._added))))
        self._apart = {sign for sign in SIGNS if sign not in joined and (space == "Ġ" or sign in vocabulary)}
        self._rests: dict[str, bytes] = {}
        self._inner = re.compile(rf"[^\s{space}](?:[^{space}]{{0,{LONGEST_WORD}}}[^\s{space}])?")
        self._num_anchor = len(tokenize([ANCHOR])[0])
        self._met = self._new = 0
        self._worth = True

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Return the ids of each text."""
        if not self._worth:
            return [to_bytes(ids) for ids in self._tokenize(list(texts))]
        if len(self._known) > MOST_WORDS:
            self._known, self._older, self._rests = {}, self._known, {}
        look_up = self._known.get
        rows: list[list[bytes | None]] = []
        fresh: dict[str, tuple[str, str]] = {}
        waiting: list[tuple[list[bytes | None], dict[int, str]]] = []
        whole: list[int] = []
        for text in texts:
            words = text.split(" ")
            words[0] = " " + words[0]
            tail = self._cut_tail(words)
            ids = list(map(look_up, words))
            self._met += len(words)
            if None in ids:
                new = {at: words[at] for at, found in enumerate(ids) if found is None}
                if self._note(fresh, new.values()):
                    waiting.append((ids, new))
                else:
                    whole.append(len(rows))
            ids.append(tail)
            rows.append(ids)
        self._learn(fresh)
        for ids, new in waiting:
            for at, word in new.items():
                ids[at] = look_up(word)
        for place, found in zip(whole, self._tokenize([texts[place] for place in whole]), strict=True):
            rows[place] = [to_bytes(found)]
        self._weigh(len(fresh))
        return list(map(b"".join, rows))  # type: ignore[arg-type]

    def _cut_tail(self, words: list[str]) -> bytes:
        """Cut what follows the first special token in the last of `words` off; return its ids."""
        last = words[-1]
        ids = b""
        for tail, known in self._tails.items():
            if last.endswith(tail):
                last, ids = last.removesuffix(tail), known
                break
        else:
            mark = self._mark.search(last, 1)
            if mark and len(self._tails) < MOST_TAILS and not self._overlaps(last[mark.start() :]):
                last, tail = last[: mark.start()], last[mark.start() :]
                ids = to_bytes(self._tokenize([ANCHOR + tail])[0][self._num_anchor :])
                self._tails[tail] = ids
        words[-1] = last + " " if len(words) == 1 or last[-1:].isspace() else last
        return ids

    def _overlaps(self, tail: str) -> bool:
        """Whether a special token could begin before `tail` and end in it."""
        return any(tail.startswith(mark[cut:]) for mark in self._marks for cut in range(1, len(mark)))

    def _note(self, fresh: dict[str, tuple[str, str]], new: Iterable[str]) -> bool:
        """Put words that were never met into `fresh`, cut in two where that is possible: (word, "") or (head, rest).

        False: one of them cannot be tokenised alone.
        """
        for key in new:
            if key in fresh:
                continue
            if (ids := self._older.get(key)) is not None:
                self._known[key] = ids
            elif not self._stands_alone(key):
                return False
            else:
                parts = CUT.fullmatch(key)
                fresh[key] = (parts[1], parts[2]) if parts and parts[2][0] in self._apart else (key, "")
        return True

    def _stands_alone(self, key: str) -> bool:
        """Whether the edges of a word that touch a space are neither spaces nor special tokens."""
        if key[:1] != " " != key[-1:]:
            return self._inner.fullmatch(key) is not None and not key.endswith(self._added)
        word = key.strip(" ")
        if not word or len(word) > LONGEST_WORD or self._space in word or (key[0] != " " and word[0].isspace()):
            return False
        return key[-1] == " " or not (word[-1].isspace() or word.endswith(self._added))

    def _weigh(self, new: int) -> None:
        self._new += new
        if self._met > WINDOW:
            self._worth = self._new < WORTH * self._met
            self._met = self._new = 0

    def _learn(self, fresh: Mapping[str, tuple[str, str]]) -> None:
        """Add words to the memory."""
        heads = {head: None for head, _ in fresh.values() if head not in self._known}
        inner = [head for head in heads if head[0] != " " and head[-1] != " "]
        edges = [head for head in heads if head[0] == " " or head[-1] == " "]
        alone = [head.strip(" ") if head[0] == " " else f"{ANCHOR} {head[:-1]}" for head in edges]
        for head, ids in zip(edges, self._tokenize(alone), strict=True):
            self._known[head] = to_bytes(ids if head[0] == " " else ids[self._num_anchor :])
        self._learn_inner(inner)
        rests = list({rest: None for _, rest in fresh.values() if rest and rest not in self._rests})
        for rest, ids in zip(rests, self._tokenize([ANCHOR + rest for rest in rests]), strict=True):
            self._rests[rest] = to_bytes(ids[self._num_anchor :])
        for key, (head, rest) in fresh.items():
            if rest:
                self._known[key] = self._known[head] + self._rests[rest]

    def _learn_inner(self, words: list[str]) -> None:
        """Tokenise words that stand between spaces, many as one text: a token with a space begins each of them."""
        groups = [words[start : start + JOINED] for start in range(0, len(words), JOINED)]
        joined = [" ".join((ANCHOR, *group)) for group in groups]
        apart: list[str] = []
        for group, ids in zip(groups, self._tokenize(joined), strict=True):
            tokens = ids[self._num_anchor :]
            begins = [4 * place for place, token in enumerate(tokens) if token in self._opening]
            if len(begins) != len(group) or begins[0] != 0:
                apart += group
                continue
            flat = to_bytes(tokens)
            for word, begin, end in zip(group, begins, [*begins[1:], len(flat)], strict=True):
                self._known[word] = flat[begin:end]
        for word, ids in zip(apart, self._tokenize([f"{ANCHOR} {word}" for word in apart]), strict=True):
            self._known[word] = to_bytes(ids[self._num_anchor :])


def to_bytes(ids: Sequence[int]) -> bytes:
    """Write ids as int32."""
    return array("i", ids).tobytes()
