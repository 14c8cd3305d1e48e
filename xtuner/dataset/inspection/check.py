"""Owns what can be wrong with one row, and with the tokens it becomes; says it in words that can be counted."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from xtuner.conversation.builtin import TEMPLATES
from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Conversation
from xtuner.conversation.template import ChatTemplate
from xtuner.dataset.encode import Chunk
from xtuner.dataset.formats.message import ROLES
from xtuner.dataset.inspection.sample import MARK, end_tokens

TEMPLATE_MARK = re.compile(r"<\|[^<>\s]+\|>|<[^<>\s/]+>|\[/?[A-Z]+\]|<<SYS>>|### (?:Instruction|Response):")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
NO_END = "the end of the answer is not learned, so the model does not learn to stop"
TWO_BOS = "the begin token (BOS) stands there twice"
LISTS = ("messages", "conversations", "conversation")


class Marks:
    """The special tokens of a tokenizer and the marks of chat templates, to be looked for inside texts."""

    def __init__(self, tokenizer: Any) -> None:
        special = {str(token) for token in tokenizer.all_special_tokens}
        for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
            if token.special or MARK.fullmatch(token.content):
                special.add(token.content)
        self.special = {token for token in special if token.strip()}
        spelled = " ".join(
            f"{row.system or ''} {row.instruction} {row.suffix} {' '.join(row.stop_words)}"
            for row in TEMPLATES.values()
        )
        marks = self.special | set(TEMPLATE_MARK.findall(spelled))
        # one of the first characters is in every mark: most texts hold none and need no search
        self.first = re.compile(f"[{re.escape(''.join({mark[0] for mark in marks}))}]")
        self.any = re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))

    def find(self, text: str) -> Iterator[str]:
        """Say for each mark in `text`, once, what it does there."""
        if self.first.search(text) is None:
            return
        for mark in dict.fromkeys(self.any.findall(text)):
            if mark in self.special:
                yield f"the text holds {mark}, which becomes a special token"
            else:
                yield f"the text holds {mark}, a mark of chat templates; the template adds such marks itself"


def check_row(row: Mapping[str, Any], conversation: Conversation, marks: Marks) -> Iterator[str]:
    """Say what is wrong with a row and the conversation read from it; each kind once."""
    found: dict[str, None] = {}
    # several texts: the row spells its marks itself (MOSS), and means them
    spelled = len(conversation) > 1 and all(message.role == "text" for message in conversation)
    for message in conversation if not spelled else ():
        found.update(dict.fromkeys(marks.find(message.text)))
        if CONTROL.search(message.text):
            found["control characters in the text, such as a NUL byte"] = None
        if message.role in ("user", "assistant") and not message.text.strip():
            found["an empty question" if message.role == "user" else "an empty answer"] = None
    found.update(dict.fromkeys(check_order(read_roles(row) or [message.role for message in conversation])))
    yield from found


def read_roles(row: Mapping[str, Any]) -> Sequence[str]:
    """Return the roles as they stand in a row that is a list of messages; else nothing.

    Formats put some mistakes right while they read; they are mistakes all the same.
    """
    for column in LISTS:
        listed = row.get(column)
        if isinstance(listed, Sequence) and not isinstance(listed, str):
            names = [str(item.get("role") or item.get("from")) for item in listed if isinstance(item, Mapping)]
            if any(name.lower() in ROLES for name in names):
                return [ROLES.get(name.lower(), name) for name in names]
    return ()


def check_order(roles: Sequence[str]) -> Iterator[str]:
    """Say what is wrong with the order of speakers."""
    talk = [role for role in roles if role in ("user", "assistant")]
    if not talk:
        return
    if talk[0] == "assistant":
        yield "wrong order: the assistant speaks first"
    if talk[-1] == "user":
        yield "wrong order: the last question has no answer"
    for role, words in (("user", "two questions in a row"), ("assistant", "two answers in a row")):
        if any(first == second == role for first, second in pairwise(talk)):
            yield f"wrong order: {words}"
    if "system" in roles and "system" in roles[roles.index(talk[0]) :]:
        yield "a system text in the middle of the talk"


class TokenCheck:
    """What can be seen in tokens alone."""

    def __init__(self, encoder: Encoder, template: ChatTemplate | None) -> None:
        self.bos = encoder.bos
        self.ends = np.array(sorted(end_tokens(encoder, template)), np.int64)

    def __call__(self, chunk: Chunk, plain: set[int]) -> Iterator[tuple[int, str]]:
        """Yield row and problem. `plain`: rows that are texts, which have no turns to end."""
        if not chunk.lengths:
            return
        sample_of = np.repeat(np.arange(len(chunk.lengths)), chunk.lengths)
        rows = np.array(chunk.rows)
        for sample in np.unique(sample_of[self._double(chunk.ids, sample_of)]).tolist():
            yield int(rows[sample]), TWO_BOS
        same = np.append(sample_of[1:] == sample_of[:-1], False)  # a value of the array
        goes_on = np.append(chunk.trained[1:], False) & same
        open_ends = chunk.trained & ~goes_on & ~np.isin(chunk.ids, self.ends)
        excused = plain | set(chunk.truncated)
        for row in dict.fromkeys(rows[np.unique(sample_of[open_ends])].tolist()):
            if row not in excused:
                yield row, NO_END

    def _double(self, ids: np.ndarray, sample_of: np.ndarray) -> np.ndarray:
        """Places where BOS follows BOS at once."""
        twice = self.bos * 2
        if not twice or len(ids) < len(twice):
            return np.empty(0, np.int64)
        room = len(ids) - len(twice) + 1
        found = sample_of[:room] == sample_of[len(twice) - 1 :]
        for place, index in enumerate(twice):
            found &= ids[place : place + room] == index
        return np.flatnonzero(found)
