"""Owns which files on this machine a `SourceSpec` names: one, those of a folder or a pattern, a split's."""

import glob
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xtuner.config.spec import SourceSpec
from xtuner.dataset.reader import READERS, SUFFIXES
from xtuner.errors import UserError, did_you_mean
from xtuner.network import HUB_ID

SPLIT_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
LOADERS = (*READERS, "jsonl")
INTERNEVO: dict[str, tuple[str, str]] = {"internevo": (".bin", "json"), "internevo_messages": (".json", "messages")}
"""Formats that are folders of a kind: the suffix of their files and the reader of these."""


@dataclass(frozen=True)
class NamedFiles:
    """The data files that a `SourceSpec` names, all there and of known kinds."""

    files: list[tuple[Path, str]]
    """Each with the row of READERS that reads it."""
    label: str
    num_bytes: int


def find_files(spec: SourceSpec) -> NamedFiles | None:
    """Return the files that `spec` names, or None for a saved data set and one of the hub; opens nothing.

    Raises:
        UserError: no such file, one that may not be read or of a kind that is not known, only empty ones.
    """
    path = Path(spec.path).expanduser()
    inside = Path(spec.data_dir).expanduser() if spec.data_dir else Path()
    if spec.path in LOADERS and not path.exists() and (spec.files is not None or spec.data_dir):
        kind = "json" if spec.path == "jsonl" else spec.path
        if spec.files is None:
            suffixes = [suffix for suffix, reader in SUFFIXES.items() if reader == kind]
            return _named(_in_folder(_folder(inside), spec.split, suffixes), kind, str(inside))
        files = _listed(spec, inside)
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        return _named(files, kind, f"{files[0]}{more}")
    if path.is_file():
        return _named([path], None, spec.path)
    if path.is_dir():
        path = _folder(path / inside)
        if spec.format in INTERNEVO:
            return _internevo(spec, path)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return None
        if spec.files is not None:
            files = _listed(spec, path)
        else:
            files = _modelscope(path, spec.name, spec.split) or _in_folder(path, spec.split, SUFFIXES)
        return _named(files, None, spec.path)
    looks_like_file = path.suffix.lower() in SUFFIXES or spec.path.startswith(("/", "./", "../", "~"))
    if looks_like_file or not HUB_ID.fullmatch(spec.path):
        raise _missing(path)
    return None


def _internevo(spec: SourceSpec, folder: Path) -> NamedFiles:
    """The files of an InternEvo folder, in the order that is asked for.

    Raises:
        UserError: there are none, the order names one that is not there, or a file of tokens was cut short.
    """
    suffix, kind = INTERNEVO[str(spec.format)]
    if spec.order is not None:
        order = Path(spec.order).expanduser()
        if not order.is_file():
            raise UserError(f"There is no file {order} that orders the data.", "Check data.train.order.")
        names = [line.strip() for line in order.read_text("utf-8").splitlines() if line.strip()]
        files = [folder / name for name in names]
    else:
        files = sorted(file for file in folder.rglob(f"*{suffix}") if file.is_file())
    if not files:
        raise UserError(f"The folder {folder} holds no {suffix} files.", "Check the path.")
    for file in files if suffix == ".bin" else ():
        _check_meta(file)
    return _named(files, kind, str(folder))


def _check_meta(file: Path) -> None:
    """Compare a .bin with its .bin.meta, which holds the offset in bytes of every row."""
    meta = file.with_name(file.name + ".meta")
    if not (meta.is_file() and file.is_file()):
        return
    try:
        rows = np.load(meta, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{meta} is not a table of rows.", "Delete it: the rows themselves suffice.") from error
    if len(rows) and int(np.max(rows[:, 0])) >= file.stat().st_size:
        raise UserError(f"{file} is cut short: {meta.name} knows of rows behind its end.", "Copy it again.")


def _modelscope(folder: Path, name: str | None, split: str | None) -> list[Path] | None:
    """The files of a folder as ModelScope lays it out; None: it is none.

    There a JSON file with the folder's name, or dataset_infos.json, says {subset: {split: {"meta": FILE}}}.
    """
    for index in (folder / f"{folder.name}.json", folder / "dataset_infos.json"):
        try:
            about = json.loads(index.read_text("utf-8")) if index.is_file() else None
        except ValueError:
            continue
        if not isinstance(about, dict) or not about or not all(map(_is_subset, about.values())):
            continue
        subset = name or ("default" if "default" in about else next(iter(about)))
        if subset not in about:
            raise UserError(f"{folder} has no subset {subset}.", f"It has: {', '.join(about)}.")
        splits: dict[str, Any] = about[subset]
        if split is not None and split not in splits:
            raise UserError(f"{folder} has no split {split}.", f"It has: {', '.join(splits)}.")
        return [folder / part["meta"] for key, part in splits.items() if split in (None, key)]
    return None


def _is_subset(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(part, Mapping) and isinstance(part.get("meta"), str) for part in value.values())
    )


def _named(files: list[Path], kind: str | None, label: str) -> NamedFiles:
    kinds = [(file, kind or _kind(file)) for file in files]
    for file in files:
        if not file.is_file():
            raise _missing(file)
        if not os.access(file, os.R_OK):
            raise UserError(f"{file} may not be read.", f"Type: chmod u+r {file}")
    total = sum(file.stat().st_size for file in files)
    if total == 0:
        raise UserError(f"{label} is empty.", "Give a file with rows in it.")
    return NamedFiles(kinds, label, total)


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


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", "Check data_dir.")
    return folder


def _in_folder(folder: Path, split: str | None, suffixes: Collection[str]) -> list[Path]:
    """The data files of a folder; where their names say so (x_train.jsonl), those of `split` alone."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix.lower() in suffixes)
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files:
        raise UserError(f"The folder {folder} holds no data files.", f"Files that are read: {', '.join(suffixes)}.")
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
