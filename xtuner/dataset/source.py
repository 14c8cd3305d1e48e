"""Owns where rows come from: a `SourceSpec` becomes files, a saved data set or one of the hub, read as a stream."""

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtuner.config.spec import SourceSpec
from xtuner.dataset.reader import READERS, SUFFIXES, Progress
from xtuner.errors import UserError, did_you_mean
from xtuner.network import HUB_ID, hub_is_reachable

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
LOADERS = (*READERS, "jsonl")
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
    path = Path(spec.path).expanduser()
    if spec.files is not None and spec.path in LOADERS and not path.exists():
        kind = "json" if spec.path == "jsonl" else spec.path
        files = _listed(spec, Path())
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        return _from_files(files, kind, f"{files[0]}{more}")
    if path.is_file():
        return _from_files([path], None, spec.path)
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return _from_disk(path, spec)
        files = _listed(spec, path) if spec.files is not None else _in_folder(path, spec.split)
        return _from_files(files, None, spec.path)
    looks_like_file = path.suffix.lower() in SUFFIXES or spec.path.startswith(("/", "./", "../", "~"))
    if looks_like_file or not HUB_ID.fullmatch(spec.path):
        raise _missing(path)
    return _from_hub(spec)


def _from_files(files: list[Path], kind: str | None, label: str) -> Source:
    kinds = {file: kind or _kind(file) for file in files}
    for file in files:
        if not file.is_file():
            raise _missing(file)
        if not os.access(file, os.R_OK):
            raise UserError(f"{file} may not be read.", f"Type: chmod u+r {file}")
    total = sum(file.stat().st_size for file in files)
    if total == 0:
        raise UserError(f"{label} is empty.", "Give a file with rows in it.")

    def rows(progress: Progress) -> Iterator[dict[str, Any]]:
        done = 0
        for file in files:
            own = Progress(notes=progress.notes)
            size = file.stat().st_size
            for row in READERS[kinds[file]](file, own):
                progress.share = (done + own.share * size) / total
                yield row
            done += size
            progress.share = done / total

    return Source(label, total, lambda: _hash_files(files), rows)


def _from_disk(folder: Path, spec: SourceSpec) -> Source:
    import datasets  # imports pandas and more: only those who need it wait for it

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a data set that can be read: {_line(error)}", "Save it again.") from error
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    data = _pick_split(loaded, spec.split, spec.path)
    return _from_datasets(data, spec.path, lambda: f"{_hash_files(files)} {spec.split}")


def _from_hub(spec: SourceSpec) -> Source:
    if not hub_is_reachable():
        os.environ["HF_DATASETS_OFFLINE"] = "1"  # read when the library is imported: only what is here is looked at
    import datasets  # as above

    try:
        loaded = datasets.load_dataset(spec.path, spec.name, data_files=spec.files, split=spec.split)
    except Exception as error:  # the library raises a dozen kinds; each means the same to the user
        raise UserError(
            f"{spec.path} is no file or folder here, and could not be loaded from the hub: {_line(error)}",
            "Check the name; without a network, give the path of a folder or file.",
        ) from error
    data = _pick_split(loaded, spec.split, spec.path)
    identity = repr((spec.path, spec.name, spec.split, len(data), [item["filename"] for item in data.cache_files]))
    return _from_datasets(data, spec.path, lambda: hashlib.sha256(identity.encode()).hexdigest())


def _from_datasets(data: "Dataset", label: str, fingerprint: Callable[[], str]) -> Source:
    def rows(progress: Progress) -> Iterator[dict[str, Any]]:
        for start in range(0, len(data), BATCH):
            columns = data[start : start + BATCH]
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))
            progress.share = min(1.0, (start + BATCH) / len(data))

    return Source(label, data.data.nbytes, fingerprint, rows)


def _pick_split(loaded: Any, split: str | None, label: str) -> "Dataset":
    import datasets  # as above

    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split is None:
        return datasets.concatenate_datasets(list(loaded.values()))
    if split not in loaded:
        raise UserError(f"{label} has no split {split}.", f"It has: {', '.join(loaded)}.")
    return loaded[split]


def _listed(spec: SourceSpec, folder: Path) -> list[Path]:
    """The files that `spec.files` names, patterns with * expanded."""
    files = spec.files
    if isinstance(files, dict):
        if spec.split is not None and spec.split not in files:
            raise UserError(f"There are no files for the split {spec.split}.", f"There are for: {', '.join(files)}.")
        chosen = list(files.values()) if spec.split is None else [files[spec.split]]
        names = [name for item in chosen for name in ([item] if isinstance(item, str) else item)]
    else:
        names = [files] if isinstance(files, str) else list(files or [])
    found: list[Path] = []
    for name in names:
        path = folder / Path(name).expanduser()
        if glob.has_magic(name):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            if not matches:
                raise UserError(f"No file fits {path}.", "Check the pattern.")
            found += matches
        else:
            found.append(path)
    if not found:
        raise UserError("The list of data files is empty.", "Name at least one file.")
    return found


def _in_folder(folder: Path, split: str | None) -> list[Path]:
    """The data files of a folder; where their names say so (x_train.jsonl), those of `split` alone."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files:
        raise UserError(f"The folder {folder} holds no data files.", f"Files that are read: {', '.join(SUFFIXES)}.")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    if split is None or set(by_split) == {""}:
        return files
    chosen = by_split.get(split) or (by_split.get("", []) if split == "train" else [])
    if not chosen:
        splits = ", ".join(name for name in by_split if name)
        raise UserError(f"The folder {folder} has no files of the split {split}.", f"It has: {splits}.")
    return chosen


def _split_of(path: Path) -> str:
    words = re.split(r"[^a-z]+", str(path.with_suffix("")).lower())
    for split, names in SPLIT_WORDS.items():
        if any(name in words for name in names):
            return split
    return ""


def _kind(file: Path) -> str:
    kind = SUFFIXES.get(file.suffix.lower())
    if kind is None:
        raise UserError(f"{file} is of a kind that is not read.", f"Kinds that are: {', '.join(SUFFIXES)}.")
    return kind


def _missing(path: Path) -> UserError:
    folder = path.parent
    near = did_you_mean(path.name, [file.name for file in folder.iterdir()]) if folder.is_dir() else ""
    return UserError(f"There is no data file {path}.", near or "Check the path.")


def _hash_files(files: list[Path]) -> str:
    digest = hashlib.blake2b()
    for file in files:
        digest.update(f"{file.suffix} {file.stat().st_size}\n".encode())
        with file.open("rb") as raw:
            while block := raw.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."
