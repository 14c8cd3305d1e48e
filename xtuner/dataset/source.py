"""Owns the stream of rows that a `SourceSpec` names, whether they stand in files, a saved data set or on a hub."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtuner.config.spec import SourceSpec
from xtuner.dataset.file import NamedFiles, find_files
from xtuner.dataset.hub import load_huggingface, load_modelscope, load_saved
from xtuner.dataset.reader import READERS, Progress

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 1000


@dataclass
class Source:
    """Rows that can be read again and again. `progress.share` tells how far the reading is."""

    label: str
    """What it is called in sentences."""
    num_bytes: int
    """About how much there is to read."""
    _fingerprint: Callable[[], str]
    _rows: Callable[[Progress], Iterator[dict[str, Any]]]
    progress: Progress = field(default_factory=Progress)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read from the beginning."""
        self.progress = Progress()
        return self._rows(self.progress)

    def fingerprint(self) -> str:
        """Return a hash of the content."""
        return self._fingerprint()


def open_source(spec: SourceSpec) -> Source:
    """Find what `spec` names; nothing is read yet.

    Raises:
        UserError: no such file, a kind of file that is not known, an empty folder, a data set that cannot be loaded.
    """
    named = find_files(spec)
    if named is not None:
        return _from_files(named)
    folder = Path(spec.path).expanduser()
    if folder.is_dir():
        folder /= spec.data_dir or ""
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return _from_datasets(load_saved(folder, spec), spec.path, lambda: f"{_hash_files(files)} {spec.split}")
    data = load_modelscope(spec) if spec.hub == "modelscope" else load_huggingface(spec)
    files = [part["filename"] for part in data.cache_files]
    parts = (spec.hub, spec.path, spec.name, spec.data_dir, spec.split, len(data), files)
    return _from_datasets(data, spec.path, lambda: hashlib.sha256(repr(parts).encode()).hexdigest())


def _from_files(named: NamedFiles) -> Source:
    total = named.num_bytes

    def rows(progress: Progress) -> Iterator[dict[str, Any]]:
        done = 0
        for file, kind in named.files:
            own = Progress(notes=progress.notes)
            size = file.stat().st_size
            for row in READERS[kind](file, own):
                progress.share = (done + own.share * size) / total
                yield row
            done += size
            progress.share = done / total

    return Source(named.label, total, lambda: _hash_files([file for file, _ in named.files]), rows)


def _from_datasets(data: "Dataset", label: str, fingerprint: Callable[[], str]) -> Source:
    def rows(progress: Progress) -> Iterator[dict[str, Any]]:
        for start in range(0, len(data), BATCH):
            columns = data[start : start + BATCH]
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))
            progress.share = min(1.0, (start + BATCH) / len(data))

    return Source(label, data.data.nbytes, fingerprint, rows)


def _hash_files(files: list[Path]) -> str:
    digest = hashlib.blake2b()
    for file in files:
        digest.update(f"{file.suffix} {file.stat().st_size}\n".encode())
        with file.open("rb") as raw:
            while block := raw.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
