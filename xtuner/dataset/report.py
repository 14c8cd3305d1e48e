"""Owns what is said about data before training: counts, copies, what was cut and what was left out, and why."""

import dataclasses
from typing import Any

from xtuner.dataset.encode import TOO_LONG, Chunk
from xtuner.errors import UserError

SHOWN_ROWS = 5


def many(count: int, noun: str) -> str:
    """Say "1 row", "2 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def render_folded(folded: dict[str, str]) -> str:
    """Say which columns were read by another name."""
    return f"Columns that were read by a known name: {', '.join(f'{name!r} as {new}' for name, new in folded.items())}."


@dataclasses.dataclass
class Tally:
    """How many rows something happened to, and the first few of them (numbers from 1)."""

    count: int = 0
    first: list[int] = dataclasses.field(default_factory=list)

    def add(self, row: int) -> None:
        """Count a row."""
        self.count += 1
        if len(self.first) < SHOWN_ROWS:
            self.first.append(row)

    def __str__(self) -> str:
        listed = ", ".join(map(str, self.first))
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.count:,} (row{'s' if self.count > 1 else ''} {listed}{more})"


@dataclasses.dataclass
class SourceReport:
    """What became of the rows of one source."""

    label: str
    format: str
    rows: int = 0
    talks: int = 0
    """Conversations among the rows that are kept; the others are plain texts."""
    samples: int = 0
    truncated: Tally = dataclasses.field(default_factory=Tally)
    parted: Tally = dataclasses.field(default_factory=Tally)
    dropped: dict[str, Tally] = dataclasses.field(default_factory=dict)
    shortest_prompt: int | None = None
    columns: list[str] = dataclasses.field(default_factory=list)
    """Of the first row."""
    unused_columns: list[str] = dataclasses.field(default_factory=list)
    folded: dict[str, str] = dataclasses.field(default_factory=dict)
    """Names of columns -> the names by which they were read."""
    notes: list[str] = dataclasses.field(default_factory=list)
    cached: bool = False

    def add(self, chunk: Chunk) -> None:
        """Count the rows of a chunk."""
        self.rows += chunk.num_rows
        self.talks += chunk.num_talks
        self.samples += len(chunk.lengths)
        for row in chunk.truncated:
            self.truncated.add(row)
        for row in chunk.parted:
            self.parted.add(row)
        for row, reason in chunk.dropped:
            self.dropped.setdefault(reason, Tally()).add(row)
        if chunk.shortest_prompt is not None:
            self.shortest_prompt = min(chunk.shortest_prompt, self.shortest_prompt or chunk.shortest_prompt)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SourceReport":
        """Undo `dataclasses.asdict`."""
        values = dict(values, truncated=Tally(**values["truncated"]), parted=Tally(**values["parted"]))
        values["dropped"] = {reason: Tally(**tally) for reason, tally in values["dropped"].items()}
        return cls(**values)

    def reasons(self) -> str:
        """Say why rows were left out."""
        return "; ".join(f"{reason}: {tally}" for reason, tally in self.dropped.items())

    def need_samples(self, max_length: int) -> None:
        """Stop when nothing is left.

        Raises:
            UserError: no rows at all, or none that can be learned; says why.
        """
        if self.samples:
            return
        if not self.rows:
            raise UserError(f"{self.label} holds no rows.", "Give a file with rows in it.")
        if set(self.dropped) == {TOO_LONG}:
            raise UserError(
                f"max_length is {max_length}, but even the shortest prompt in {self.label} has {self.shortest_prompt} "
                "tokens: no answer would be learned.",
                f"Set data.max_length to {2 * (self.shortest_prompt or max_length)} or more.",
            )
        if TOO_LONG in self.dropped:
            fix = f"Set data.max_length (now {max_length}) higher."
        else:
            fix = f"They were read as the format {self.format}; the key format of the source chooses another."
            if self.columns:
                fix += f" The columns are: {', '.join(self.columns)}."
        raise UserError(
            f"None of the {many(self.rows, 'row')} of {self.label} can be learned: {self.reasons()}.",
            fix,
        )

    def lines(self, max_length: int) -> list[str]:
        """Say it in sentences."""
        known = " (prepared before)" if self.cached else ""
        said = [f"{self.label}: {many(self.rows, 'row')} of the format {self.format}{known}."]
        if self.folded:
            said.append(f"  {render_folded(self.folded)}")
        if self.unused_columns:
            unused = ", ".join(name or "(no name)" for name in self.unused_columns)
            said.append(f"  Columns that are not used: {unused}.")
        if self.truncated.count:
            said.append(f"  Longer than {max_length:,} tokens and cut at the end: {self.truncated}.")
        if self.parted.count:
            said.append(f"  Texts longer than {max_length:,} tokens, learned in parts: {self.parted}.")
        if self.dropped:
            said.append(f"  Left out: {self.reasons()}.")
        return said + [f"  {note}" for note in self.notes]


@dataclasses.dataclass
class DataReport:
    """What will be trained on."""

    max_length: int
    sources: list[SourceReport] = dataclasses.field(default_factory=list)
    validation_sources: list[SourceReport] = dataclasses.field(default_factory=list)
    rows: int = 0
    samples: int = 0
    packs: int = 0
    packed: bool = True
    pack_length: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    kept_rows: int = 0
    """Rows that are trained on: neither left out nor set apart."""
    duplicates: int = 0
    """Of these, rows that say the same as an earlier one."""
    validation_samples: int = 0
    validation_packs: int = 0
    shared: int = 0
    """Validation samples that are also trained on."""
    template_of_relatives: str | None = None
    """The model looks like a base model, and this is how chat models of its kind spell conversations."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for `run.json`."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """Say in sentences what was found; shown before training."""
        said = [line for source in self.sources for line in source.lines(self.max_length)]
        for source in self.validation_sources:
            first, *rest = source.lines(self.max_length)
            said += [f"Validation: {first}", *rest]
        if self.template_of_relatives:
            said.append(
                f"It looks like a base model: conversations are spelled as {self.template_of_relatives}, as the chat "
                "models of its kind do (data.template=NAME chooses another)."
            )
        if self.packed:
            full = self.tokens / (self.packs * self.pack_length)
            said.append(
                f"{many(self.samples, 'sample')} in {many(self.packs, 'pack')} of at most {self.pack_length:,} tokens, "
                f"{full:.1%} full."
            )
        else:
            said.append(f"{many(self.samples, 'sample')}, each on its own.")
        said.append(f"{self.tokens:,} tokens, {self.trained_tokens:,} of them learned ({self.share:.1%}).")
        if self.duplicates:
            different = self.kept_rows - self.duplicates
            said.append(
                f"{self.duplicates:,} of {self.kept_rows:,} rows are exact copies of others; "
                f"{different:,} {'is' if different == 1 else 'are'} different."
            )
        if self.validation_samples:
            packs = many(self.validation_packs, "pack")
            said.append(f"For validation: {many(self.validation_samples, 'sample')} in {packs}.")
        if self.shared:
            said.append(f"Of these, {self.shared:,} are also trained on; their loss will look too good.")
        return said

    @property
    def share(self) -> float:
        """Of the tokens that are learned."""
        return self.trained_tokens / max(1, self.tokens)
