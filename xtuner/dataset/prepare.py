"""Owns the preparation of one source: its rows become samples on disk, once; afterwards they come from the cache."""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np

from xtuner.config.choice import pick
from xtuner.config.spec import DataSpec, SourceSpec
from xtuner.conversation.encode import Encoder
from xtuner.conversation.template import ChatTemplate
from xtuner.dataset import FORMATS, PAIR_FORMATS
from xtuner.dataset.cache import cache_folder, hash_code, make_key, new_entry, tidy
from xtuner.dataset.encode import Job
from xtuner.dataset.formats.recognise import fold_columns, recognise, recognise_pairs
from xtuner.dataset.parallel import encode_source
from xtuner.dataset.progress import show_progress
from xtuner.dataset.report import SourceReport
from xtuner.dataset.row import BadRow
from xtuner.dataset.source import Source, open_source
from xtuner.dataset.store import ABOUT, Samples, SampleWriter
from xtuner.errors import UserError

LOOKED_AT = 100
"""Rows that are read to recognise the format."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source that was found, and how its rows are to be read."""

    spec: SourceSpec
    source: Source
    job: Job
    unused: list[str]
    """Columns that the format does not look at."""
    folded: dict[str, str]
    """Columns that are read by a name written otherwise."""
    columns: list[str]
    """Of the first row."""

    def new_report(self) -> SourceReport:
        """Begin to say what becomes of the rows."""
        return SourceReport(
            self.source.label,
            self.job.format_name,
            columns=self.columns,
            unused_columns=self.unused,
            folded=self.folded,
        )


class Preparer:
    """Makes the samples of sources, or finds them in the cache."""

    def __init__(
        self,
        spec: DataSpec,
        encoder: Encoder,
        template: ChatTemplate | None,
        seed: int,
        tell: Callable[[str], None],
        *,
        pairs: bool = False,
        ending: int | None = None,
    ) -> None:
        self.pairs, self.ending = pairs, ending
        self.spec, self.encoder, self.template, self.seed, self.tell = spec, encoder, template, seed, tell
        self.folder = cache_folder(spec.cache)
        self.tokenizer_hash = encoder.fingerprint()
        tidy(self.folder)

    def open(self, spec: SourceSpec) -> Opened:
        """Find the rows of one source and how they are read; cheap, so that mistakes show before long work begins.

        Raises:
            UserError: it cannot be found or read, or its format is unknown.
        """
        source = open_source(spec)
        rows = list(islice(source.rows(), LOOKED_AT))
        if not rows:
            raise UserError(f"{source.label} holds no rows.", "Give a file with rows in it.")
        first = rows[0]
        for name in spec.rename:
            if name not in first:
                raise UserError(
                    f"{source.label} has no column {name} to rename.", f"It has: {', '.join(map(str, first))}."
                )
        formats = PAIR_FORMATS if self.pairs else FORMATS
        samples = [{spec.rename.get(name, name): value for name, value in row.items()} for row in rows]
        folded = fold_columns(samples) if spec.format is None or spec.format in formats else {}
        rename = {name: folded.get(new, new) for name, new in ({name: name for name in folded} | spec.rename).items()}
        samples = [{folded.get(name, name): value for name, value in row.items()} for row in samples]
        if spec.format in (FORMATS if self.pairs else PAIR_FORMATS) and spec.format not in formats:
            wanted = "pairs of answers" if self.pairs else "conversations or texts"
            raise UserError(
                f"{source.label}: rows of the format {spec.format} are no {wanted}, which the objective learns from.",
                "Choose another objective (objective=sft, dpo, ...) or format.",
            )
        format_name = spec.format or (recognise_pairs if self.pairs else recognise)(samples, source.label)
        read = pick(formats, format_name, "row format")
        job = Job(
            label=source.label,
            format_name=format_name,
            read=functools.partial(read, bot_name=spec.bot_name) if spec.bot_name else read,
            own=format_name in formats,
            template=self.template,
            encoder=self.encoder,
            max_length=self.spec.max_length,
            rename=rename,
            system=spec.system,
            min_length=spec.min_length,
            pairs=self.pairs,
            ending=self.ending,
        )
        unused = _unused(job, samples[0])
        written = {new: name for name, new in folded.items()}
        return Opened(
            spec,
            source,
            job,
            unused=[written.get(name, name) for name in unused],
            folded={name: new for name, new in folded.items() if new not in unused},
            columns=[str(name) for name in first],
        )

    def prepare(self, opened: Opened) -> tuple[Samples, SourceReport]:
        """Return the samples of one source, and what became of its rows.

        Raises:
            UserError: its rows cannot be read, or none can be learned.
        """
        spec, source, job = opened.spec, opened.source, opened.job
        key = make_key(
            source.fingerprint(),
            job.format_name if job.own else hash_code(job.read),
            sorted(job.rename.items()),
            (spec.system, spec.bot_name, spec.min_length, self.pairs, self.ending),
            (spec.limit, self.seed) if spec.limit else None,
            dataclasses.astuple(self.template) if self.template else None,
            self.tokenizer_hash,
            self.spec.max_length,
        )
        samples = self._find(key)
        cached = samples is not None
        if samples is None:
            self.tell(f"Preparing {source.label} (format {job.format_name}).")
            self._write(key, opened)
            samples = self._find(key)
            if samples is None:
                raise UserError(f"Prepared data vanished from {self.folder}.", "Try again.")
        report = SourceReport.from_dict(samples.about)
        report.label, report.cached = source.label, cached
        samples.about["label"] = source.label  # the same rows may have been prepared from another file
        report.need_samples(self.spec.max_length)
        return samples, report

    def _find(self, key: str) -> Samples | None:
        entry = self.folder / key
        if not entry.is_dir():
            return None
        try:
            samples = Samples(entry)
        except (OSError, ValueError):
            shutil.rmtree(entry, ignore_errors=True)
            return None
        if os.access(entry, os.W_OK):
            os.utime(entry)
        return samples

    def _write(self, key: str, opened: Opened) -> None:
        spec, source, job = opened.spec, opened.source, opened.job
        report = opened.new_report()
        with new_entry(self.folder, key) as folder:
            chosen = _draw(source, spec.limit, self.seed) if spec.limit else None
            writer = SampleWriter(folder)
            try:
                with show_progress(f"Preparing {source.label}") as show:
                    for chunk in encode_source(job, source, chosen):
                        writer.add(chunk)
                        report.add(chunk)
                        show(source.progress.share)
            finally:
                writer.close()
            report.notes = source.progress.notes
            report.need_samples(self.spec.max_length)
            (folder / ABOUT).write_text(json.dumps(dataclasses.asdict(report), ensure_ascii=False), encoding="utf-8")


def _draw(source: Source, limit: int, seed: int) -> set[int] | None:
    """Draw the numbers of `limit` rows; None when there are no more than that."""
    total = sum(1 for _ in source.rows())
    if total <= limit:
        return None
    return set((np.random.default_rng(seed).choice(total, limit, replace=False) + 1).tolist())


class _Watched(dict[str, Any]):
    """A row that remembers which of its columns were asked for."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.used.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.used.add(name)
        return super().get(name, default)


def _unused(job: Job, sample: dict[str, Any]) -> list[str]:
    """The columns of `sample` that one of our formats does not look at."""
    if not job.own:
        return []
    row = _Watched(sample)
    try:
        job.read(row)
    except BadRow:
        return []
    return [name for name in sample if name not in row.used]
