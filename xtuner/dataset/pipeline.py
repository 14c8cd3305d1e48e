"""Owns the way from a `DataSpec` to data sets: sources, validation, packs, and what is said about them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xtuner.config.ref import Ref
from xtuner.config.spec import DataSpec, TemplateSpec
from xtuner.conversation.builtin import find_template, to_template
from xtuner.conversation.detect import detect_template, detect_text, usual_template
from xtuner.conversation.encode import Encoder
from xtuner.conversation.template import ChatTemplate
from xtuner.dataset.pack import Packs, best_fit, singles
from xtuner.dataset.prepare import Preparer
from xtuner.dataset.report import DataReport
from xtuner.dataset.store import PackedDataset, Samples
from xtuner.errors import UserError
from xtuner.log import LOGGER


@dataclass(frozen=True)
class Prepared:
    """Data that is ready. `template` is None when everything is plain text and none was asked for."""

    train: PackedDataset
    validation: PackedDataset | None
    report: DataReport
    fingerprint: str
    """Equal for equal data in equal packs, whichever version of this program has prepared them."""
    template: ChatTemplate | None


def build_dataset(
    spec: DataSpec,
    tokenizer: Any,
    *,
    seed: int,
    tell: Callable[[str], None] = LOGGER.info,
    pairs: bool = False,
    ending: int | None = None,
) -> Prepared:
    """Prepare what `spec` names for `tokenizer`; what was prepared before is taken from the cache.

    `seed` draws `limit` rows, the validation share and which samples share a pack. `tell` hears what takes long;
    the sentences of `report.lines()` are left to the caller.

    With `pairs` the rows are preferences: samples (segments of a pack and of a batch) 2k and 2k + 1 are the chosen and
    the rejected one of a row, and a pack holds `pack_length` tokens or at least one pair. `ending` is a token put
    behind each of them (a reward is read there).

    Raises:
        UserError: data that cannot be found, read or learned, an unknown format or template.
    """
    if isinstance(spec.validation, float) and not 0 < spec.validation < 1:
        raise UserError(f"The validation share is {spec.validation}.", "Give a number between 0 and 1, or files.")
    template = choose_template(spec.template, tokenizer)
    preparer = Preparer(spec, Encoder(tokenizer), template, seed, tell, pairs=pairs, ending=ending)
    separate = spec.validation if isinstance(spec.validation, list) else []
    opened = [preparer.open(source) for source in (*spec.train, *separate)]
    train = [preparer.prepare(source) for source in opened[: len(spec.train)]]
    validation = [preparer.prepare(source) for source in opened[len(spec.train) :]]
    room = max(longest_pack(spec), 2 * (spec.max_length + (ending is not None)) if pairs else 0)
    report = DataReport(spec.max_length, packed=spec.pack, pack_length=room)
    report.sources = [source for _, source in train]
    report.validation_sources = [source for _, source in validation]
    stores = [store for store, _ in train]
    held = [store for store, _ in validation]
    groups = np.concatenate([store.groups for store in stores])
    chosen = np.zeros(len(groups), bool)
    if isinstance(spec.validation, float):
        chosen = set_apart(groups, spec.validation, seed)
        held = stores
        held_packs = _pack(held, np.flatnonzero(chosen), room if spec.pack else None, seed, 1 + pairs)
    elif held:
        every = repeat(np.arange(sum(map(len, held))), held, [source.repeat for source in separate], seed)
        held_packs = _pack(held, every, room if spec.pack else None, seed, 1 + pairs)
        report.shared = int(np.isin(np.concatenate([store.groups for store in held]), groups).sum())
    kept = np.flatnonzero(~chosen)
    report.kept_rows = int(_opens_row(stores)[kept].sum())
    report.duplicates = report.kept_rows - len(np.unique(groups[kept]))
    kept = repeat(kept, stores, [source.repeat for source in spec.train], seed)
    packs = _pack(stores, kept, room if spec.pack else None, seed, 1 + pairs)
    report.rows = sum(source.rows for source in report.sources)
    report.samples, report.packs = len(kept), len(packs)
    report.tokens = int(np.concatenate([store.lengths for store in stores])[kept].sum(dtype=np.int64))
    report.trained_tokens = int(np.concatenate([store.targets for store in stores])[kept].sum(dtype=np.int64))
    if held:
        report.validation_samples, report.validation_packs = len(held_packs.members), len(held_packs)
    talks = any(source.talks for source in (*report.sources, *report.validation_sources))
    report.template_of_relatives = _relatives(spec.template, tokenizer) if talks else None
    return Prepared(
        train=PackedDataset(stores, packs),
        validation=PackedDataset(held, held_packs) if held else None,
        report=report,
        fingerprint=_hash(preparer.tokenizer_hash, (stores, packs), *([(held, held_packs)] if held else [])),
        template=template if talks or spec.template else None,
    )


def choose_template(name: str | TemplateSpec | None, tokenizer: Any) -> ChatTemplate | None:
    """Return the template called `name` (of ours, or `file.py:name`), or the one that the tokenizer's model speaks; for
    a base model the one that all chat models of its kind speak.

    A `TemplateSpec` is written out already.

    Raises:
        UserError: there is no such template.
    """
    if name is None:
        folder = _folder_of(tokenizer)
        written = getattr(tokenizer, "chat_template", None)
        if folder.is_dir():
            found = detect_template(folder) or usual_template(folder)
        else:  # a hub id
            found = detect_text(written, type(tokenizer).__name__) if isinstance(written, str) else None
        return find_template(found) if found else None
    if isinstance(name, TemplateSpec) or ":" not in name:
        return to_template(name if isinstance(name, str) else name.fields())
    template = Ref(name).resolve()
    if not isinstance(template, ChatTemplate):
        raise UserError(f"{name} is no chat template.", "It must be an xtuner.conversation.template.ChatTemplate.")
    return template


def _relatives(name: str | TemplateSpec | None, tokenizer: Any) -> str | None:
    """Return the template that was taken from the relatives of a base model, if it was."""
    folder = _folder_of(tokenizer)
    return usual_template(folder) if name is None and folder.is_dir() and detect_template(folder) is None else None


def _folder_of(tokenizer: Any) -> Path:
    return Path(str(getattr(tokenizer, "name_or_path", "") or ""))


def set_apart(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose `share` of the samples (S,) for validation, as a mask; copies stay together, so that none leaks.

    Raises:
        UserError: the samples are too few different ones.
    """
    wanted = max(1, round(share * len(groups)))
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(counts))
    small = order[counts[order] <= wanted]
    fits = small[np.cumsum(counts[small]) <= wanted]
    chosen = np.isin(inverse, fits)
    if not chosen.any() or chosen.all():
        raise UserError(
            f"{share:g} of {len(groups):,} samples cannot be set apart for validation: "
            f"only {len(counts):,} of them are different, and copies must not be on both sides.",
            "Give files for validation (data.validation=FILE), or leave it out.",
        )
    return chosen


def _opens_row(stores: Sequence[Samples]) -> np.ndarray:
    """Mark samples (S,) that are the first of their row: a long text makes several."""
    return np.concatenate([np.diff(store.rows, prepend=0) != 0 for store in stores])


def repeat(kept: np.ndarray, stores: Sequence[Samples], times: Sequence[float], seed: int) -> np.ndarray:
    """Return the samples `kept` (their numbers) so often as their sources say; a part of a time is drawn with `seed`.

    All samples of a row are drawn together.
    """
    if all(time == 1 for time in times):
        return kept
    starts = np.cumsum([0, *map(len, stores)])
    found: list[np.ndarray] = []
    for index, (store, time) in enumerate(zip(stores, times, strict=True)):
        own = kept[(kept >= starts[index]) & (kept < starts[index + 1])]
        rows = store.rows[own - starts[index]]
        numbers = np.unique(rows)
        whole, part = divmod(time, 1)
        drawn = np.random.default_rng([seed, index]).permutation(numbers)[: round(part * len(numbers))]
        found += [own] * int(whole) + [own[np.isin(rows, drawn)]]
    every = np.concatenate(found)
    if not len(every):
        raise UserError("The key repeat of the sources leaves no rows.", "Make it larger.")
    return every


def _pack(stores: Sequence[Samples], kept: np.ndarray, room: int | None, seed: int, unit: int) -> Packs:
    """Pack `kept` samples, `unit` of them (2: a pair) never parted; `room` is in tokens, None: one unit a pack."""
    if room is None:
        packs = singles(len(kept) // unit)
    else:
        lengths = np.concatenate([store.lengths for store in stores])[kept]
        packs = best_fit(lengths.reshape(-1, unit).sum(1), room, seed)
    return Packs(kept.reshape(-1, unit)[packs.members].ravel(), packs.borders * unit)


def longest_pack(spec: DataSpec) -> int:
    """Return how many tokens a pack may hold."""
    return max(spec.max_length, spec.pack_length or 0)


def _hash(tokenizer: str, *sets: tuple[Sequence[Samples], Packs]) -> str:
    """Hash what is learned, in its order: the texts of the samples, their lengths in tokens, the packs."""
    digest = hashlib.sha256(tokenizer.encode())
    for stores, packs in sets:
        digest.update(np.concatenate([store.groups for store in stores])[packs.members].tobytes())
        digest.update(np.concatenate([store.lengths for store in stores])[packs.members].tobytes())
        digest.update(packs.borders.astype(np.int64).tobytes())
    return digest.hexdigest()
