"""Owns the step from rows to token ids with the marks of what is learned: format, render, encode, cut; row by row."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from xtuner.conversation.builtin import PLAIN, TEMPLATES
from xtuner.conversation.encode import Encoder, Piece
from xtuner.conversation.message import Conversation, Message, Span
from xtuner.conversation.template import ChatTemplate
from xtuner.dataset.formats.turn import from_turns
from xtuner.dataset.row import BadRow, Row
from xtuner.errors import UserError

NOTHING = "nothing in it is learned"
TOO_LONG = "max_length ends before the first answer"

NumberedRow = tuple[int, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Job:
    """How the rows of one source are turned into samples."""

    label: str
    """What the source is called in errors."""
    format_name: str
    read: Callable[[Row], Any]
    own: bool
    """`read` is one of ours: it raises BadRow and returns messages."""
    template: ChatTemplate | None
    encoder: Encoder
    max_length: int
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    system: str | None = None


@dataclasses.dataclass
class Chunk:
    """Samples made of some rows, flat: `ids` (N,) int32, `trained` (N,) bool, and a length for each sample."""

    ids: np.ndarray
    trained: np.ndarray
    lengths: list[int]
    groups: list[int]
    """For each sample a hash of the whole row it was made of: equal for copies, and for parts of one text."""
    rows: list[int]
    """For each sample the number of its row."""
    num_rows: int = 0
    num_talks: int = 0
    """Rows that are conversations, not plain texts."""
    truncated: list[int] = dataclasses.field(default_factory=list)
    """Numbers of rows that were cut on the right."""
    parted: list[int] = dataclasses.field(default_factory=list)
    """Numbers of rows that are long texts, learned in several parts."""
    dropped: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    shortest_prompt: int | None = None
    """Tokens before the first learned one, the least of all rows dropped as TOO_LONG."""


def encode_rows(job: Job, rows: Sequence[NumberedRow]) -> Chunk:
    """Encode `rows` (number, columns).

    Conversations longer than `max_length` tokens are cut on the right; a plain text is learned in parts instead. Rows
    that teach nothing are left out with a reason.

    Raises:
        UserError: a user's format function failed, or conversations without a template.
    """
    numbers: list[int] = []
    talks: list[bool] = []
    rendered: list[list[Span]] = []
    chunk = Chunk(np.empty(0, np.int32), np.empty(0, bool), [], [], [], num_rows=len(rows))
    for number, row in rows:
        try:
            conversation = to_conversation(job, number, row)
        except BadRow as reason:
            chunk.dropped.append((number, str(reason)))
            continue
        talk = any(message.role != "text" for message in conversation)
        if talk and job.template is None:
            raise UserError(
                f"{job.label} holds conversations, and the model does not say which chat template it speaks.",
                f"Choose one with data.template: {', '.join(sorted(TEMPLATES))}.",
            )
        numbers.append(number)
        talks.append(talk)
        rendered.append((job.template or PLAIN).render(conversation))
    chunk.num_talks = sum(talks)
    samples: list[list[Piece]] = []
    encoded = job.encoder.encode_many(rendered)
    for number, talk, spans, pieces in zip(numbers, talks, rendered, encoded, strict=True):
        parts = list(_samples(job, chunk, number, talk, pieces))
        samples += parts
        chunk.groups += [_hash(spans)] * len(parts)
        chunk.rows += [number] * len(parts)
    flat = [piece for sample in samples for piece in sample]
    sizes = np.fromiter((len(ids) for ids, _ in flat), np.int64, len(flat))
    chunk.ids = np.fromiter(chain.from_iterable(ids for ids, _ in flat), np.int32, int(sizes.sum()))
    chunk.trained = np.repeat(np.fromiter((train for _, train in flat), bool, len(flat)), sizes)
    chunk.lengths = [sum(len(ids) for ids, _ in sample) for sample in samples]
    return chunk


def to_conversation(job: Job, number: int, row: dict[str, Any]) -> Conversation:
    """Apply the renamings, the format and the system text of `job` to a row.

    Raises:
        BadRow: the row cannot be used.
        UserError: a user's format function failed.
    """
    if job.rename:
        row = {job.rename.get(name, name): value for name, value in row.items()}
    if job.own:
        conversation = job.read(row)
    else:
        conversation = _foreign(job, number, row)
    for message in conversation:
        try:
            message.text.encode()
        except UnicodeEncodeError:
            raise BadRow("a broken character (half of a surrogate pair)") from None
    roles = {message.role for message in conversation}
    if job.system and "system" not in roles and roles != {"text"}:
        return [Message("system", job.system), *conversation]
    return conversation


def _foreign(job: Job, number: int, row: dict[str, Any]) -> Conversation:
    """Call a user's function: it returns messages, or as in 0.1.x {"conversation": turns}, or turns."""
    try:
        result = job.read(row)
    except BadRow:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(
            f"The format {job.format_name} failed on row {number} of {job.label} ({what}).", "Mend the function."
        ) from error
    if isinstance(result, Mapping):
        result = result.get("conversation")
    if isinstance(result, list | tuple):
        if result and all(isinstance(item, Message) for item in result):
            return list(result)
        return from_turns(result)
    raise UserError(
        f"The format {job.format_name} returned {type(result).__name__} for row {number} of {job.label}.",
        'It must return {"conversation": [{"input": ..., "output": ...}]}, or a list of messages.',
    )


def _samples(job: Job, chunk: Chunk, number: int, talk: bool, pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Yield what is kept of one row; note in `chunk` what happened to it."""
    if not _learns(pieces):
        chunk.dropped.append((number, NOTHING))
        return
    length = sum(len(ids) for ids, _ in pieces)
    if length <= job.max_length:
        yield pieces
        return
    parts = list(_cut(pieces, job.max_length)) if not talk else [next(_cut(pieces, job.max_length))]
    parts = [part for part in parts if _learns(part)]
    if not parts:
        chunk.dropped.append((number, TOO_LONG))
        first = next(index for index, (_, train) in enumerate(pieces) if train)
        prompt = sum(len(ids) for ids, _ in pieces[:first])
        chunk.shortest_prompt = min(prompt, chunk.shortest_prompt or prompt)
        return
    (chunk.truncated if talk else chunk.parted).append(number)
    yield from parts


def _learns(pieces: Sequence[Piece]) -> bool:
    """Whether a target remains: the first token of a sample is never one."""
    at = 0
    for ids, train in pieces:
        if train and at + len(ids) > 1:
            return True
        at += len(ids)
    return False


def _cut(pieces: Sequence[Piece], max_length: int) -> Iterator[list[Piece]]:
    """Yield windows of `max_length` tokens, the last one maybe shorter."""
    window: list[Piece] = []
    room = max_length
    for ids, train in pieces:
        at = 0
        while at < len(ids):
            taken = ids[at : at + room]
            window.append((taken, train))
            at += len(taken)
            room -= len(taken)
            if room == 0:
                yield window
                window, room = [], max_length
    if window:
        yield window


def _hash(spans: Sequence[Span]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for span in spans:
        digest.update(f"{span.mark or ''}{span.train}{len(span.text)}:{span.text}".encode())
    return int.from_bytes(digest.digest(), "little")
