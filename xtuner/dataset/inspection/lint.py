"""Owns the inspection of whole data sets: everything that is wrong with their rows, in sentences with row numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xtuner.config.spec import DataSpec
from xtuner.dataset.encode import Chunk, Job, NumberedRow
from xtuner.dataset.inspection.check import Marks, TokenCheck, check_row
from xtuner.dataset.inspection.near_duplicate import SIMILAR, NearDuplicates
from xtuner.dataset.inspection.sample import open_sources, read_talks
from xtuner.dataset.parallel import encode_chunk, read_chunks
from xtuner.dataset.prepare import Opened
from xtuner.dataset.progress import show_progress
from xtuner.dataset.report import SourceReport, Tally, many
from xtuner.dataset.row import BadRow

NO_SYSTEM = "a system text, and the template {} has no place for one: a run would refuse it"
COPY, SIMILAR_ROW = "exact copies of earlier rows", f"nearly the same as an earlier row ({SIMILAR:.0%} or more)"

SHOWN_PAIRS = 3
KEPT = np.dtype([("hash", np.uint64), ("number", np.int64), ("source", np.int32), ("in_words", np.bool_)])
"""A row that is learned. One of ready-made tokens is not in words; only exact copies of it are found."""


@dataclass
class SourceFindings:
    """What was found in one source."""

    report: SourceReport
    tokens: int = 0
    learned: int = 0
    problems: dict[str, Tally] = field(default_factory=dict)
    """What is wrong -> the rows."""
    refused: Tally = field(default_factory=Tally)
    """Rows that would stop a run."""
    alike: list[tuple[int, str, int]] = field(default_factory=list)
    """The first rows that are nearly the same: row, label of the other's source, row there."""

    def add(self, row: int, problem: str) -> None:
        """Count a row."""
        self.problems.setdefault(problem, Tally()).add(row)

    def why_pointless(self) -> str:
        """Say why nothing can be learned from the source; an empty text when something can."""
        if self.refused.count:
            return "a run would stop at rows that its template cannot spell"
        if not self.report.rows:
            return "it holds no rows"
        return "" if self.report.samples else "none of its rows can be learned"

    def lines(self, max_length: int) -> list[str]:
        """Say it in sentences."""
        said = self.report.lines(max_length)
        share = self.learned / max(1, self.tokens)
        said.insert(1, f"  {self.tokens:,} tokens, {self.learned:,} of them learned ({share:.1%}).")
        for problem, tally in self.problems.items():
            said.append(f"  {problem[0].upper()}{problem[1:]}: {tally}.")
        for row, label, other in self.alike:
            where = "" if label == self.report.label else f" of {label}"
            said.append(f"    row {row:,} resembles row {other:,}{where}")
        return said


@dataclass
class Findings:
    """What was found in all sources."""

    max_length: int
    sources: list[SourceFindings]

    @property
    def pointless(self) -> bool:
        """Whether a run on this data would fail or learn nothing."""
        return any(source.why_pointless() for source in self.sources)

    def lines(self) -> list[str]:
        """Say it in sentences, source by source, and what follows from it."""
        said = [line for source in self.sources for line in source.lines(self.max_length)]
        learned, tokens = (sum(getattr(source, name) for source in self.sources) for name in ("learned", "tokens"))
        if len(self.sources) > 1 and tokens:
            for source in self.sources:
                part = source.learned / max(1, learned)
                said.append(f"{part:6.1%} of all that is learned comes from {source.report.label}.")
        for source in self.sources:
            if why := source.why_pointless():
                said.append(f"A run would be pointless: {source.report.label}: {why}.")
        if self.pointless:
            return said
        kinds = sum(len(s.problems) + len(s.report.dropped) + bool(s.report.truncated.count) for s in self.sources)
        said.append(f"{many(kinds, 'kind')} of problems; a run would work." if kinds else "Nothing is wrong with it.")
        return said


def lint(spec: DataSpec, tokenizer: Any, *, seed: int = 0, pairs: bool = False) -> Findings:
    """Look at every row of all training sources of `spec` (also where `limit` would draw some of them).

    `pairs`: they are preferences. Of every row a hash and a number stay in memory; its signature (256 bytes) lies in a
    temporary file.

    Raises:
        UserError: data that cannot be read at all.
    """
    marks, texts = Marks(tokenizer), NearDuplicates()
    found: list[SourceFindings] = []
    kept: list[np.ndarray] = []
    try:
        for opened in open_sources(spec, tokenizer, seed=seed, pairs=pairs):
            found.append(_inspect(opened, len(found), marks, texts, kept))
        _compare(found, np.concatenate([np.empty(0, KEPT), *kept]), texts)
    finally:
        texts.close()
    return Findings(spec.max_length, found)


def _inspect(opened: Opened, place: int, marks: Marks, texts: NearDuplicates, kept: list[np.ndarray]) -> SourceFindings:
    """Return what is wrong with the single rows of source `place`; add those that are learned to `kept` and `texts`."""
    job, source = opened.job, opened.source
    report = opened.new_report()
    findings = SourceFindings(report)
    check = TokenCheck(job.encoder, job.template)
    with show_progress(f"Looking at {job.label}") as show:
        for rows in read_chunks(source, None):
            spoken, plain, refused = _read(job, rows, findings, marks)
            chunk = encode_chunk(job, [row for row in rows if row[0] not in refused])
            chunk.num_rows = len(rows)
            report.add(chunk)
            findings.tokens += len(chunk.ids)
            findings.learned += int(chunk.trained.sum())
            if chunk.lengths:
                starts = np.cumsum(chunk.lengths) - chunk.lengths
                findings.learned -= int(chunk.trained[starts].sum())  # a first token is never a target
            for number, problem in check(chunk, plain):
                findings.add(number, problem)
            kept.append(_keep(chunk, place, spoken))
            texts.add([spoken[number] for number in kept[-1]["number"].tolist()])
            show(source.progress.share)
    report.notes = source.progress.notes
    return findings


def _keep(chunk: Chunk, place: int, spoken: dict[int, str]) -> np.ndarray:
    """Note every row of `chunk` once, whatever the number of its samples."""
    numbers, first = np.unique(np.array(chunk.rows, np.int64), return_index=True)
    kept = np.empty(len(numbers), KEPT)
    kept["source"], kept["number"] = place, numbers
    kept["hash"] = np.array(chunk.groups, np.uint64)[first]
    kept["in_words"] = [bool(spoken[number]) for number in numbers.tolist()]
    return kept


def _read(
    job: Job, rows: Sequence[NumberedRow], findings: SourceFindings, marks: Marks
) -> tuple[dict[int, str], set[int], set[int]]:
    """Check rows before they are tokens; returns what each says, which are plain texts, and which a run refuses."""
    spoken: dict[int, str] = {}
    plain: set[int] = set()
    refused: set[int] = set()
    for number, row in rows:
        try:
            talks = read_talks(job, number, row)
        except BadRow:
            continue  # `encode_rows` counts it
        said = [message for talk in talks for message in talk]
        spoken[number] = "\n".join(message.text for message in said if message.role != "system")
        # of preferences all that follows the prompt is learned, what stands behind an end of turn too
        if job.pairs or all(message.role in ("text", "system") for message in said):
            plain.add(number)
        for problem in dict.fromkeys(problem for talk in talks for problem in check_row(row, talk, marks)):
            findings.add(number, problem)
        systems = any(message.role == "system" and message.text for message in said)
        if systems and job.template is not None and job.template.system is None:
            findings.add(number, NO_SYSTEM.format(job.template.name))
            findings.refused.add(number)
            refused.add(number)
    return spoken, plain, refused


def _compare(found: Sequence[SourceFindings], kept: np.ndarray, texts: NearDuplicates) -> None:
    """Find rows that say the same as earlier ones, through all sources."""
    _, first = np.unique(kept["hash"], return_index=True)
    unique = np.zeros(len(kept), bool)
    unique[first] = True
    for row in kept[~unique]:
        found[row["source"]].add(int(row["number"]), COPY)
    among = np.flatnonzero(unique & kept["in_words"])
    earlier = texts.find(among)
    alike = earlier != among
    for row, other in zip(kept[among[alike]], kept[earlier[alike]], strict=True):
        findings = found[row["source"]]
        findings.add(int(row["number"]), SIMILAR_ROW)
        if len(findings.alike) < SHOWN_PAIRS:
            findings.alike.append((int(row["number"]), found[other["source"]].report.label, int(other["number"])))
