"""Owns samples on disk: flat token files that are mapped into memory, and the data sets read from them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xtuner.dataset.batch import IGNORE
from xtuner.dataset.encode import Chunk
from xtuner.dataset.pack import Packs

IDS, TRAINED, LENGTHS, TARGETS, GROUPS = "ids.i32", "trained.u8", "lengths.i32", "targets.i32", "groups.u64"
ROWS = "rows.i32"
ABOUT = "about.json"


@dataclass(frozen=True)
class Pack:
    """One or more whole samples: `input_ids` (T,), `labels` (T,) unshifted with IGNORE, and the samples' `lengths`."""

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: list[int]


class SampleWriter:
    """Appends chunks to the files of a folder; memory does not grow with the data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {
            name: (folder / name).open("wb") for name in (IDS, TRAINED, LENGTHS, TARGETS, GROUPS, ROWS)
        }

    def add(self, chunk: Chunk) -> None:
        """Write the samples of `chunk`."""
        if not chunk.lengths:
            return
        lengths = np.array(chunk.lengths, np.int32)
        begins = np.cumsum(lengths) - lengths
        # the first token of a sample is never a target
        targets = np.add.reduceat(chunk.trained, begins, dtype=np.int32) - chunk.trained[begins]
        self._files[IDS].write(chunk.ids.astype(np.int32).tobytes())
        self._files[TRAINED].write(chunk.trained.astype(np.uint8).tobytes())
        self._files[LENGTHS].write(lengths.tobytes())
        self._files[TARGETS].write(targets.astype(np.int32).tobytes())
        self._files[GROUPS].write(np.array(chunk.groups, np.uint64).tobytes())
        self._files[ROWS].write(np.array(chunk.rows, np.int32).tobytes())

    def close(self) -> None:
        """Finish the files."""
        for file in self._files.values():
            file.close()


class Samples:
    """The samples of one folder; tokens stay on disk until they are asked for.

    `lengths`, `targets` (tokens that are learned), `groups` (equal for copies) and `rows` (numbers) are (S,).
    """

    def __init__(self, folder: Path) -> None:
        self.about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self.lengths = np.fromfile(folder / LENGTHS, np.int32)
        self.targets = np.fromfile(folder / TARGETS, np.int32)
        self.groups = np.fromfile(folder / GROUPS, np.uint64)
        self.rows = np.fromfile(folder / ROWS, np.int32)
        self.begins = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        empty = not len(self.lengths)
        self.ids = np.empty(0, np.int32) if empty else np.memmap(folder / IDS, np.int32, "r")
        self.trained = np.empty(0, np.uint8) if empty else np.memmap(folder / TRAINED, np.uint8, "r")
        if not (
            self.begins[-1] == len(self.ids) == len(self.trained)
            and len(self.lengths) == len(self.groups) == len(self.targets) == len(self.rows)
        ):
            raise ValueError(f"{folder} is not whole")

    def __len__(self) -> int:
        return len(self.lengths)


class PackedDataset:
    """Packs of samples of several folders. `packs` counts samples through all of them."""

    def __init__(self, stores: Sequence[Samples], packs: Packs) -> None:
        self.stores, self.packs = list(stores), packs
        self._starts = np.cumsum([0, *(len(store) for store in stores)])

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> Pack:
        ids: list[np.ndarray] = []
        trained: list[np.ndarray] = []
        for sample in self.packs[index]:
            store, own = self._find(sample)
            window = slice(store.begins[own], store.begins[own + 1])
            ids.append(store.ids[window])
            trained.append(store.trained[window])
        input_ids = np.concatenate(ids).astype(np.int64)
        labels = np.where(np.concatenate(trained) != 0, input_ids, IGNORE)
        return Pack(input_ids, labels, [len(part) for part in ids])

    def sizes(self) -> np.ndarray:
        """Return the tokens of each pack (P,)."""
        lengths = np.concatenate([store.lengths for store in self.stores])[self.packs.members]
        sums = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return np.diff(sums[self.packs.borders])

    def highest_id(self) -> int:
        """Return the largest token id in the folders; reads all of them."""
        return max((int(store.ids.max()) for store in self.stores if len(store)), default=-1)

    def origin(self, index: int) -> str:
        """Say which rows are in a pack, to name it in an error."""
        rows: dict[str, list[str]] = {}
        for sample in self.packs[index]:
            store, own = self._find(sample)
            rows.setdefault(str(store.about["label"]), []).append(str(store.rows[own]))
        return "; ".join(f"{label}, rows {', '.join(numbers)}" for label, numbers in rows.items())

    def _find(self, sample: int) -> tuple[Samples, int]:
        which = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return self.stores[which], int(sample - self._starts[which])
