"""Owns the division of a data file into parts, and its repetition."""

import hashlib
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from xtuner.dataset.progress import show_progress
from xtuner.dataset.reader import Progress
from xtuner.dataset.table.layout import JsonWriter, Writer, is_list, kind_of, read_rows, to_json, writer_like
from xtuner.errors import UserError

PARTS = {2: ("train", "test"), 3: ("train", "validation", "test")}
RATIO = re.compile(r"\d+(\.\d+)?(:\d+(\.\d+)?)+")


@dataclass(frozen=True)
class Divided:
    """How a file was divided: rows of each part, and how many rows of later parts also stand in the first."""

    sizes: list[int]
    shared: int


def read_ratio(words: str) -> list[float]:
    """Read "7:3" or "8:1:1".

    Raises:
        UserError: anything else (exit code 2).
    """
    shares = [float(word) for word in words.split(":")] if RATIO.fullmatch(words) else []
    if len(shares) not in PARTS or not all(shares):
        raise UserError(
            f"{words} is no ratio of two or three parts.", "Write it like 7:3 (train, test) or 8:1:1.", exit_code=2
        )
    return shares


def part_names(file: Path, num_parts: int) -> list[Path]:
    """Name the parts after the file: data-train.jsonl, data-test.jsonl beside data.jsonl."""
    return [file.with_name(f"{file.stem}-{name}{file.suffix}") for name in PARTS[num_parts]]


def split(file: Path, shares: Sequence[float], outs: Sequence[IO[bytes]], *, seed: int) -> Divided:
    """Divide the rows of `file` by `shares`, drawn with `seed`, into files of the same kind; the order stays.

    Every row goes into exactly one part.

    Raises:
        UserError: the file cannot be read, or has too few rows for so many parts.
    """
    with show_progress(f"Counting {file}") as show:
        progress = Progress()
        marks = array("Q")
        for row in read_rows(file, progress):
            marks.append(_mark(to_json(row)))
            show(progress.share)
    sizes = share_out(len(marks), shares)
    if not all(sizes):
        raise UserError(
            f"{file} has {len(marks):,} row{'' if len(marks) == 1 else 's'}, too few for {len(sizes)} parts.",
            "Add rows, or use the file as it is.",
        )
    part_of = np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes)
    part_of = part_of[np.random.default_rng(seed).permutation(len(part_of))]
    make = writer_like(file)
    writers: list[Writer] = [make(out) for out in outs]
    with show_progress(f"Splitting {file}") as show:
        progress = Progress()
        for row, part in zip(read_rows(file, progress), part_of.tolist(), strict=True):
            writers[part].add(row)
            show(progress.share)
    for writer in writers:
        writer.close()
    hashes = np.frombuffer(marks, np.uint64)
    shared = int(np.isin(hashes[part_of > 0], hashes[part_of == 0]).sum())
    return Divided(sizes, shared)


def share_out(count: int, shares: Sequence[float]) -> list[int]:
    """Divide `count` by `shares` into whole numbers that add up to it (largest remainders)."""
    exact = [count * share / sum(shares) for share in shares]
    sizes = [int(number) for number in exact]
    by_rest = sorted(range(len(sizes)), key=lambda part: sizes[part] - exact[part])
    for part in by_rest[: count - sum(sizes)]:
        sizes[part] += 1
    return sizes


def repeat(file: Path, times: int, target: Path, out: IO[bytes]) -> tuple[int, int]:
    """Write all rows of `file` `times` times, one pass after another; returns how many rows there are and were made.

    `target` names the file that `out` is: of the same kind, or JSON of any.

    Raises:
        UserError: the file cannot be read, holds no rows, or cannot be written as that kind.
    """
    if kind_of(target) == "json":
        same = target.suffix.lower() == file.suffix.lower()
        writer: Writer = JsonWriter(out, listed=is_list(file) if same else target.suffix.lower() == ".json")
    elif kind_of(target) == kind_of(file):
        writer = writer_like(file)(out)
    else:
        raise UserError(
            f"{file} cannot be repeated into {target}.", f"Name it {target.stem}{file.suffix} or {target.stem}.jsonl."
        )
    rows = 0
    with show_progress(f"Repeating {file}") as show:
        for done in range(times):
            progress = Progress()
            for row in read_rows(file, progress):
                writer.add(row)
                rows += done == 0
                show((done + progress.share) / times)
            if not rows:
                raise UserError(f"{file} holds no rows.", "Give a file with rows in it.")
    writer.close()
    return rows, rows * times


def _mark(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
