"""Owns what one row looks like to the model: its tokens, which are learned, and where the special ones stand."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from xtuner.config.spec import DataSpec
from xtuner.conversation.builtin import PLAIN
from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Conversation
from xtuner.conversation.template import ChatTemplate
from xtuner.dataset.encode import Job, to_conversation
from xtuner.dataset.pair import to_pair
from xtuner.dataset.parallel import encode_chunk
from xtuner.dataset.pipeline import choose_template
from xtuner.dataset.prepare import Opened, Preparer
from xtuner.dataset.row import BadRow
from xtuner.errors import UserError
from xtuner.log import LOGGER

MARK = re.compile(r"<(?!0x)[^<>\s]+>|\[[A-Za-z_][A-Za-z0-9_]*\]")
"""What a special token looks like; bytes such as <0x0A> do not."""


@dataclass(frozen=True)
class Stretch:
    """Tokens side by side that are alike: all learned or none, one special token or ordinary text."""

    text: str
    trained: bool
    special: bool


@dataclass
class Place:
    """Where a special token stands (counted from 0), and where of these it is learned."""

    token: str
    at: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)


@dataclass
class Seen:
    """A row as training sees it. `ids` and `trained` (T,) are of the first part, when a long text has several."""

    label: str
    number: int
    format: str
    template: str
    row: dict[str, Any]
    ids: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    places: list[tuple[str, Place]] = field(default_factory=list)
    """BOS, EOS and stop tokens: what each is, and its places."""
    notes: list[str] = field(default_factory=list)


def open_sources(spec: DataSpec, tokenizer: Any, *, seed: int, pairs: bool = False) -> list[Opened]:
    """Find all training sources of `spec` as a run would; `pairs`: one that learns from preferences.

    Raises:
        UserError: as `build_dataset`, before any long work.
    """
    template = choose_template(spec.template, tokenizer)
    preparer = Preparer(spec, Encoder(tokenizer), template, seed, LOGGER.info, pairs=pairs)
    return [preparer.open(source) for source in spec.train]


def see_row(
    spec: DataSpec, tokenizer: Any, *, source: int = 1, number: int = 1, seed: int = 0, pairs: bool = False
) -> Seen:
    """Show row `number` of the training source `source` (both from 1) as training sees it; `pairs`: preferences.

    Raises:
        UserError: there is no such source or row; whatever keeps the data from being read at all.
    """
    if not 1 <= source <= len(spec.train):
        raise UserError(f"There is no source {source}.", f"There are {len(spec.train)}, counted from 1.", exit_code=2)
    chosen = spec.model_copy(update={"train": [spec.train[source - 1]]})
    opened = open_sources(chosen, tokenizer, seed=seed, pairs=pairs)[0]
    job = opened.job
    row = next(islice(opened.source.rows(), max(0, number - 1), None), None) if number > 0 else None
    if row is None:
        count = sum(1 for _ in opened.source.rows())
        raise UserError(f"{job.label} has no row {number}.", f"It has {count:,}, counted from 1.")
    seen = Seen(job.label, number, job.format_name, job.template.name if job.template else "none", row)
    try:
        conversation = read_talks(job, number, row)[0]
    except BadRow as reason:
        seen.notes.append(f"Left out: {reason}.")
        return seen
    chunk = encode_chunk(job, [(number, row)])
    if chunk.lengths:
        length = chunk.lengths[0]
        seen.ids, seen.trained = chunk.ids[:length].tolist(), [bool(flag) for flag in chunk.trained[:length]]
        if chunk.truncated:
            seen.notes.append(
                f"Longer than {job.max_length:,} tokens, and cut at the end: what is missing is not learned."
            )
        if chunk.parted:
            seen.notes.append(f"A long text, learned in {len(chunk.lengths)} parts; this is the first.")
        if pairs:
            rejected = chunk.ids[length : length + chunk.lengths[1]].tolist()
            text = tokenizer.decode(rejected, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            seen.notes.append(f"That is the chosen answer. The rejected one:\n{text}")
    else:
        seen.ids, seen.trained = job.encoder.encode((job.template or PLAIN).render(conversation))
        seen.notes += [f"Left out: {reason}." for _, reason in chunk.dropped]
    names = name_tokens(tokenizer, seen.ids)
    seen.stretches = to_stretches(tokenizer, seen.ids, seen.trained, names)
    seen.places = find_places(job, seen.ids, seen.trained, names)
    return seen


def read_talks(job: Job, number: int, row: dict[str, Any]) -> list[Conversation]:
    """Return what a row says: one conversation, or of a preference the one chosen and the one rejected.

    Raises:
        BadRow: the row cannot be used.
        UserError: a user's format function failed.
    """
    if not job.pairs:
        return [to_conversation(job, number, row)]
    pair = to_pair(job, number, row)
    return [[*pair.prompt, *answer] for answer in (pair.chosen, pair.rejected)]


def name_tokens(tokenizer: Any, ids: Sequence[int]) -> dict[int, str]:
    """Return the special tokens among `ids` with their names."""
    special = set(tokenizer.all_special_ids)
    names: dict[int, str] = {}
    for index in sorted(set(ids)):
        token = str(tokenizer.convert_ids_to_tokens(index))
        if index in special or MARK.fullmatch(token):
            names[index] = token
    return names


def to_stretches(tokenizer: Any, ids: Sequence[int], trained: Sequence[bool], names: dict[int, str]) -> list[Stretch]:
    """Cut a sample (T,) where the kind of token changes; ordinary text is decoded."""
    stretches: list[Stretch] = []
    keys = [(flag, index if index in names else None) for index, flag in zip(ids, trained, strict=True)]
    for (flag, special), group in itertools.groupby(zip(keys, ids, strict=True), key=lambda pair: pair[0]):
        own = [index for _, index in group]
        if special is None:
            text = tokenizer.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            stretches.append(Stretch(text, flag, special=False))
        else:
            stretches += [Stretch(names[special], flag, special=True)] * len(own)
    return stretches


def end_tokens(encoder: Encoder, template: ChatTemplate | None) -> dict[int, str]:
    """Return the tokens that end a turn, with what they are called: EOS, or a stop token of the template."""
    ends = dict.fromkeys(encoder.eos, "EOS")
    if template is not None:
        for word in (*template.stop_words, template.suffix.strip()):
            ids = list(encoder.tokenizer.encode(word, add_special_tokens=False)) if word else []
            if len(ids) == 1:
                ends.setdefault(int(ids[0]), "stop")
    return ends


def find_places(
    job: Job, ids: Sequence[int], trained: Sequence[bool], names: dict[int, str]
) -> list[tuple[str, Place]]:
    """Find BOS, EOS and the stop tokens of the template in a sample (T,)."""
    roles = {**end_tokens(job.encoder, job.template), **dict.fromkeys(job.encoder.bos, "BOS")}
    places = {
        index: Place(names.get(index) or str(job.encoder.tokenizer.convert_ids_to_tokens(index))) for index in roles
    }
    for at, (index, flag) in enumerate(zip(ids, trained, strict=True)):
        if index in places:
            places[index].at.append(at)
            if flag:
                places[index].trained.append(at)
    order = {"BOS": 0, "EOS": 1, "stop": 2}
    return sorted(((roles[index], place) for index, place in places.items()), key=lambda item: order[item[0]])
