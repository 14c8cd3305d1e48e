"""Owns the two looks at data that 0.1.x offered: the first sample, and a row after every step of its preparation."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from xtuner.config.spec import DataSpec
from xtuner.conversation.builtin import PLAIN
from xtuner.conversation.message import Conversation
from xtuner.dataset.batch import IGNORE
from xtuner.dataset.encode import Job, NumberedRow
from xtuner.dataset.formats.recognise import guess
from xtuner.dataset.formats.turn import to_turns
from xtuner.dataset.inspection.sample import open_sources, read_talks
from xtuner.dataset.pack import best_fit
from xtuner.dataset.parallel import encode_chunk
from xtuner.dataset.pipeline import build_dataset, longest_pack
from xtuner.dataset.report import Tally
from xtuner.dataset.row import BadRow
from xtuner.dataset.source import Source
from xtuner.errors import UserError

LOOKED_AT = 10


def log_first(spec: DataSpec, tokenizer: Any, what: str, *, seed: int, pairs: bool = False) -> Iterator[str]:
    """Yield the lines that 0.1.x printed of the first sample (the first pack, if the run packs).

    `what`: text, masked_text, input_ids, labels or all.

    Raises:
        UserError: as `build_dataset`.
    """
    first = build_dataset(spec, tokenizer, seed=seed, pairs=pairs).train[0]
    ids, labels = first.input_ids.tolist(), first.labels.tolist()
    if what in ("text", "all"):
        yield _title("text")
        yield tokenizer.decode(ids)
    if what in ("masked_text", "all"):
        yield _title("text(masked)")
        masked = " ".join("[-100]" for label in labels if label == IGNORE)
        yield f"{masked} {tokenizer.decode([label for label in labels if label != IGNORE])}"
    if what in ("input_ids", "all"):
        yield _title("input_ids")
        yield str(ids)
    if what in ("labels", "all"):
        yield _title("labels")
        yield str(labels)


def check_steps(spec: DataSpec, tokenizer: Any, *, seed: int, pairs: bool = False) -> Iterator[str]:
    """Yield what a row of each source is after every step; ten rows at most are drawn with `seed` and looked at.

    Raises:
        UserError: none of the rows fits the format (says which one they fit), or teaches anything.
    """
    opened = open_sources(spec, tokenizer, seed=seed, pairs=pairs)
    for one, source in zip(opened, spec.train, strict=True):
        job = one.job
        rows = _draw(one.source, min(source.limit or LOOKED_AT, LOOKED_AT), seed)
        if len(opened) > 1:
            yield f"{job.label}:"
        number, conversation = _first_usable(job, rows)
        yield _title("dataset after `dataset_map_fn`")
        yield str(to_turns(conversation))
        yield _title("dataset after adding templates")
        for span in (job.template or PLAIN).render(conversation):
            yield f"{'learned' if span.train else 'not learned':12}{f'<{span.mark}>' if span.mark else repr(span.text)}"
        chunk = encode_chunk(job, rows)
        if not chunk.lengths:
            why = "; ".join(dict.fromkeys(reason for _, reason in chunk.dropped))
            raise UserError(
                f"None of the {len(rows)} rows of {job.label} that were looked at can be learned: {why}.",
                f"Set data.max_length (now {spec.max_length}) higher, or mend the rows: xtuner data lint says more.",
            )
        labels = np.where(chunk.trained, chunk.ids, IGNORE)
        ends = np.cumsum(chunk.lengths)
        places = [slice(end - length, end) for end, length in zip(ends, chunk.lengths, strict=True)]
        shown = chunk.rows.index(number) if number in chunk.rows else 0
        yield _title("encoded input_ids")
        yield str(chunk.ids[places[shown]].tolist())
        yield _title("encoded labels")
        yield str(labels[places[shown]].tolist())
        if spec.pack:
            pack = best_fit(np.array(chunk.lengths), longest_pack(spec), seed)[0]
            yield _title("input_ids after packed to max_length")
            yield str([index for sample in pack for index in chunk.ids[places[sample]].tolist()])
            yield _title("labels after packed to max_length")
            yield str([index for sample in pack for index in labels[places[sample]].tolist()])


def _title(words: str) -> str:
    return f"{'#' * 20}   {words}   {'#' * 20}"


def _draw(source: Source, count: int, seed: int) -> list[NumberedRow]:
    """Draw rows in one pass (Vitter's algorithm R), in the order of the file."""
    chance, drawn = random.Random(seed), list[NumberedRow]()
    for number, row in enumerate(source.rows(), 1):
        if len(drawn) < count:
            drawn.append((number, row))
        elif (place := chance.randrange(number)) < count:
            drawn[place] = (number, row)
    return sorted(drawn, key=lambda item: item[0])


def _first_usable(job: Job, rows: list[NumberedRow]) -> tuple[int, Conversation]:
    reasons: dict[str, Tally] = {}
    for number, row in rows:
        try:
            return number, read_talks(job, number, row)[0]
        except BadRow as reason:
            reasons.setdefault(str(reason), Tally()).add(number)
    why = "; ".join(f"{reason}: {tally}" for reason, tally in reasons.items())
    fits = guess(rows[0][1])
    if fits is None or fits == job.format_name:
        fix = "Mend the rows, or read them with a function of your own (format: file.py:function)."
    else:
        old = "None" if fits == "conversation" else f"{fits}_map_fn"
        fix = f"They look like the format {fits}: set dataset_map_fn={old} (in a YAML config: format: {fits})."
    raise UserError(f"{job.label} does not fit the format {job.format_name}: {why}.", fix)
