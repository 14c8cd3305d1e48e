"""Owns the step from rows to token ids with the marks of what is learned: format, render, encode, cut; row by row."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xtuner.conversation.builtin import PLAIN
from xtuner.conversation.detect import advise_template
from xtuner.conversation.encode import Encoder, Piece
from xtuner.conversation.message import Conversation, Message, Span
from xtuner.conversation.template import ChatTemplate
from xtuner.dataset.formats.turn import from_turns
from xtuner.dataset.piece import ID_BYTES, cut, learns, num_tokens, to_pieces, whole_turns
from xtuner.dataset.row import BadRow, Row, Script, Tokens
from xtuner.errors import UserError

NOTHING = "nothing in it is learned"
TOO_LONG = "max_length ends before the first answer"

MOST_CHARACTERS = 1 << 23
"""A tokenizer takes 150 bytes and more for each of those that it is given at once."""
TOO_MUCH = f"a text of more than {MOST_CHARACTERS:,} characters that cannot be tokenised in parts"

NumberedRow = tuple[int, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Job:
    """How the rows of one source are turned into samples."""

    label: str
    """What the source is called in errors."""
    format_name: str
    read: Callable[[Row], Any]
    own: bool
    """`read` is one of ours: it raises BadRow and returns messages, a Script or Tokens."""
    template: ChatTemplate | None
    encoder: Encoder
    max_length: int
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    system: str | None = None
    min_length: int = 0
    """Rows of tokens with fewer of them are left out."""
    pairs: bool = False
    """`read` gives a `Pair`: `encode_pairs` makes the samples."""
    ending: int | None = None
    """With `pairs`: a token put behind every sample, where a reward is read."""

    def no_template(self) -> UserError:
        """Return the error of conversations without a chat template."""
        folder = str(getattr(self.encoder.tokenizer, "name_or_path", "") or "")
        return UserError(
            f"{self.label} holds conversations, and the model does not say which chat template it speaks.",
            f"Choose one with data.template: {advise_template(folder)}.",
        )

    def call(self, number: int, row: Row) -> Any:
        """Call a user's format function.

        Raises:
            UserError: it failed.
        """
        try:
            return self.read(row)
        except BadRow:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(
                f"The format {self.format_name} failed on row {number} of {self.label} ({what}).", "Mend the function."
            ) from error

    def wrong_result(self, number: int, result: Any, wanted: str) -> UserError:
        """Return the error of a user's function that returns something else than `wanted`."""
        return UserError(
            f"The format {self.format_name} returned {type(result).__name__} for row {number} of {self.label}.",
            f"It must return {wanted}.",
        )

    def with_system(self, conversation: Conversation) -> Conversation:
        """Open a conversation with the system text."""
        return [Message("system", self.system or ""), *conversation]


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

    @classmethod
    def empty(cls, num_rows: int) -> "Chunk":
        """Begin with no samples of `num_rows` rows."""
        return cls(np.empty(0, np.int32), np.empty(0, bool), [], [], [], num_rows=num_rows)

    def lay_out(self, samples: Sequence[Sequence[Piece]]) -> None:
        """Write the pieces of `samples` one after another."""
        flat = [piece for sample in samples for piece in sample]
        sizes = [len(ids) // ID_BYTES for ids, _ in flat]
        self.ids = np.frombuffer(b"".join([ids for ids, _ in flat]), np.int32)
        self.trained = np.repeat(np.array([train for _, train in flat], bool), sizes)
        self.lengths = [num_tokens(sample) for sample in samples]

    def leave_out_long(self, number: int, prompt: int) -> None:
        """Note that of a row with `prompt` tokens before the first learned one nothing to learn remains."""
        self.dropped.append((number, TOO_LONG))
        self.shortest_prompt = min(prompt, self.shortest_prompt or prompt)


def encode_rows(job: Job, rows: Sequence[NumberedRow]) -> Chunk:
    """Encode `rows` (number, columns).

    Conversations longer than `max_length` tokens are cut on the right; a plain text is learned in parts instead. Rows
    that teach nothing are left out with a reason.

    Raises:
        UserError: a user's format function failed, or conversations without a template.
    """
    drafts: list[_Draft] = []
    chunk = Chunk.empty(len(rows))
    for number, row in rows:
        try:
            drafts += _draft(job, number, row)
        except BadRow as reason:
            chunk.dropped.append((number, str(reason)))
    spans = {talk: [draft.spans for draft in drafts if draft.spans and draft.talk is talk] for talk in (True, False)}
    encoded = {
        True: iter(job.encoder.encode_many(spans[True], enough=job.max_length + 1)),
        False: iter(job.encoder.encode_many(spans[False])),
    }
    samples: list[list[Piece]] = []
    for draft in drafts:
        chunk.num_talks += draft.talk
        pieces = next(encoded[draft.talk]) if draft.spans else draft.pieces
        parts = list(_samples(job, chunk, draft, pieces))
        samples += parts
        chunk.groups += [_hash(draft)] * len(parts)
        chunk.rows += [draft.number] * len(parts)
    chunk.lay_out(samples)
    return chunk


@dataclasses.dataclass(slots=True)
class _Draft:
    """A row on its way: spans that are to be tokenised, or pieces that are tokens already."""

    number: int
    talk: bool
    spans: list[Span] = dataclasses.field(default_factory=list)
    pieces: list[Piece] = dataclasses.field(default_factory=list)
    turns: list[int] = dataclasses.field(default_factory=list)
    """Of a Script: the number of spans in each turn."""


def _draft(job: Job, number: int, row: dict[str, Any]) -> Iterator[_Draft]:
    """Yield what a row holds: one conversation, or all samples of a row of tokens."""
    read = _read(job, number, row)
    if isinstance(read, Tokens):
        if sum(len(ids) for ids, _ in read.samples) < job.min_length:
            raise BadRow(f"fewer than {job.min_length} tokens")
        for ids, trained in read.samples:
            yield _Draft(number, not all(trained[1:]), pieces=to_pieces(ids, trained))
    elif isinstance(read, Script):
        spans = [span for turn in read.turns for span in turn]
        check_size(job.encoder, spans)
        yield _Draft(number, True, spans, turns=[len(turn) for turn in read.turns])
    else:
        talk = any(message.role != "text" for message in read)
        if talk and job.template is None:
            raise job.no_template()
        spans = (job.template or PLAIN).render(read)
        check_size(job.encoder, spans)
        yield _Draft(number, talk, spans)


def to_conversation(job: Job, number: int, row: dict[str, Any]) -> Conversation:
    """Apply the renamings, the format and the system text of `job` to a row; one of tokens says nothing.

    Raises:
        BadRow: the row cannot be used.
        UserError: a user's format function failed.
    """
    read = _read(job, number, row)
    if isinstance(read, Tokens):
        return []
    if isinstance(read, Script):
        return [Message("text", span.text, train=span.train) for turn in read.turns for span in turn if span.text]
    return read


def _read(job: Job, number: int, row: dict[str, Any]) -> Conversation | Script | Tokens:
    if job.rename:
        row = {job.rename.get(name, name): value for name, value in row.items()}
    read = job.read(row) if job.own else _foreign(job, number, row)
    if isinstance(read, Tokens):
        return read
    check_text((span for turn in read.turns for span in turn) if isinstance(read, Script) else read)
    if isinstance(read, Script):
        return read
    roles = {message.role for message in read}
    if job.system and "system" not in roles and roles != {"text"}:
        return job.with_system(read)
    return list(read)


def check_text(said: Iterable[Message | Span]) -> None:
    """Refuse texts that cannot be written in UTF-8.

    Raises:
        BadRow: there is one.
    """
    for part in said:
        if not part.text.isascii():
            try:
                part.text.encode()
            except UnicodeEncodeError:
                raise BadRow("a broken character (half of a surrogate pair)") from None


def check_size(encoder: Encoder, spans: Sequence[Span]) -> None:
    """Refuse texts that memory would not suffice for.

    Raises:
        BadRow: there is one.
    """
    for span in spans:
        if len(span.text) > MOST_CHARACTERS and encoder.longest_part(span.text) > MOST_CHARACTERS:
            raise BadRow(TOO_MUCH)


def _foreign(job: Job, number: int, row: dict[str, Any]) -> Conversation:
    """Call a user's function: it returns messages, or as in 0.1.x {"conversation": turns}, or turns."""
    result = job.call(number, row)
    if isinstance(result, Mapping):
        result = result.get("conversation")
    if isinstance(result, list | tuple):
        if result and all(isinstance(item, Message) for item in result):
            return list(result)
        return from_turns(result)
    raise job.wrong_result(number, result, '{"conversation": [{"input": ..., "output": ...}]}, or a list of messages')


def _samples(job: Job, chunk: Chunk, draft: _Draft, pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Yield what is kept of one row; note in `chunk` what happened to it."""
    number = draft.number
    if not learns(pieces):
        chunk.dropped.append((number, NOTHING))
        return
    if num_tokens(pieces) <= job.max_length:
        yield pieces
        return
    if draft.turns:
        parts = [whole_turns(pieces, draft.turns, job.max_length)]
    else:
        parts = list(cut(pieces, job.max_length))[: 1 if draft.talk else None]
    parts = [part for part in parts if learns(part)]
    if not parts:
        first = next(index for index, (_, train) in enumerate(pieces) if train)
        chunk.leave_out_long(number, num_tokens(pieces[:first]))
        return
    (chunk.truncated if draft.talk else chunk.parted).append(number)
    yield from parts


def _hash(draft: _Draft) -> int:
    said = "".join([f"{span.mark or ''}{span.train}{len(span.text)}:{span.text}" for span in draft.spans])
    digest = hashlib.blake2b(said.encode(), digest_size=8)
    for ids, train in draft.pieces:
        digest.update(ids + bytes((train,)))
    return int.from_bytes(digest.digest(), "little")
