"""Owns the step from preference rows to tokens: two samples a row, the chosen answer first, side by side ever after."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from xtuner.conversation.encode import Piece
from xtuner.conversation.message import Span
from xtuner.conversation.word import to_bytes
from xtuner.dataset.encode import NOTHING, Chunk, Job, NumberedRow, check_size, check_text
from xtuner.dataset.formats.preference import preference
from xtuner.dataset.piece import cut, learns, num_tokens
from xtuner.dataset.row import BadRow, Pair

ALIKE = "the chosen and the rejected answer are the same"


def encode_pairs(job: Job, rows: Sequence[NumberedRow]) -> Chunk:
    """Encode preference rows: samples 2k and 2k + 1 of the chunk are the chosen and the rejected one of a row.

    All that follows the prompt is learned, as in 0.1.x. Samples longer than `max_length` tokens are cut on the right;
    then `job.ending` follows, if there is one. Rows where an answer is lost by that are left out.

    Raises:
        UserError: a user's format function failed, or there is no chat template.
    """
    chunk = Chunk.empty(len(rows))
    numbers: list[int] = []
    spelled: list[list[Span]] = []
    for number, row in rows:
        try:
            spans = _spell(job, to_pair(job, number, row))
            for one in spans:
                check_size(job.encoder, one)
            spelled += spans
            numbers.append(number)
        except BadRow as reason:
            chunk.dropped.append((number, str(reason)))
    encoded = job.encoder.encode_many(spelled, enough=job.max_length + 1)
    chunk.num_talks = len(numbers)
    samples: list[list[Piece]] = []
    for index, number in enumerate(numbers):
        both = encoded[2 * index : 2 * index + 2]
        kept = [next(cut(pieces, job.max_length), []) for pieces in both]
        if not all(map(learns, kept)):
            if not all(map(learns, both)):
                chunk.dropped.append((number, NOTHING))
            else:
                prompts = ([piece for piece in pieces if not piece[1]] for pieces in both)
                chunk.leave_out_long(number, max(map(num_tokens, prompts)))
            continue
        if any(num_tokens(pieces) > job.max_length for pieces in both):
            chunk.truncated.append(number)
        if job.ending is not None:
            kept = [[*pieces, (to_bytes([job.ending]), True)] for pieces in kept]
        samples += kept
        chunk.groups += [_hash(spelled[2 * index : 2 * index + 2])] * 2
        chunk.rows += [number] * 2
    chunk.lay_out(samples)
    return chunk


def to_pair(job: Job, number: int, row: dict[str, Any]) -> Pair:
    """Apply the renamings, the format and the system text of `job` to a row.

    Raises:
        BadRow: the row cannot be used.
        UserError: a user's format function failed.
    """
    if job.rename:
        row = {job.rename.get(name, name): value for name, value in row.items()}
    pair = job.read(row) if job.own else _foreign(job, number, row)
    talks = (pair.prompt, pair.chosen, pair.rejected)
    check_text(message for talk in talks for message in talk)
    if not pair.prompt or pair.prompt[-1].role != "user":
        raise BadRow("the prompt does not end with a question")
    if any(not talk or talk[-1].role != "assistant" for talk in talks[1:]):
        raise BadRow("an answer does not end with the assistant")
    if pair.chosen == pair.rejected:
        raise BadRow(ALIKE)
    if job.system and all(message.role != "system" for message in pair.prompt):
        pair = dataclasses.replace(pair, prompt=job.with_system(pair.prompt))
    return pair


def _foreign(job: Job, number: int, row: dict[str, Any]) -> Pair:
    result = job.call(number, row)
    if isinstance(result, Pair):
        return result
    if isinstance(result, Mapping):
        return preference(result)
    raise job.wrong_result(number, result, '{"prompt": [messages], "chosen": [messages], "rejected": [messages]}')


def _spell(job: Job, pair: Pair) -> list[list[Span]]:
    """The spans of both samples; those of the prompt are not learned."""
    if job.template is None:
        raise job.no_template()
    opening = len(job.template.render(pair.prompt, reply=True))
    both = [job.template.render([*pair.prompt, *answer]) for answer in (pair.chosen, pair.rejected)]
    return [[dataclasses.replace(span, train=at >= opening) for at, span in enumerate(spans)] for spans in both]


def _hash(samples: Sequence[Sequence[Span]]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for spans in samples:
        for span in spans:
            digest.update(f"{span.mark or ''}{span.train}{len(span.text)}:{span.text}".encode())
        digest.update(b"|")
    return int.from_bytes(digest.digest(), "little")
