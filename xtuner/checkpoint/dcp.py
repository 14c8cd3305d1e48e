"""Reads the folders that `torch.distributed.checkpoint` writes (FSDP2), in one process and without a process group.

`.metadata` says which tensor is cut into which chunks, and where in the `__R_N.distcp` files they are. It is a pickle
that torch's own reader would run; here it is walked as data (`pth_pickle`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtuner.checkpoint.pth import load_pickle, read_pth
from xtuner.checkpoint.pth_pickle import Foreign
from xtuner.checkpoint.weights import LazyWeights
from xtuner.errors import UserError

METADATA = ".metadata"
WEIGHTS = ("state_dict", "model")
"""Under which of these keys the weights were saved; without them they lie at the top."""


def is_dcp(folder: Path) -> bool:
    """Whether a folder is a checkpoint of `torch.distributed.checkpoint`."""
    return (folder / METADATA).is_file()


def load_dcp(folder: Path) -> dict[str, Any]:
    """Return what the folder holds: `state_dict`, weights that are each put together when asked for, and everything
    beside them that is no tensor, nested as it was saved. Tensors of an optimizer are left out.

    Memory: the weights handed out, and one chunk.

    Raises:
        UserError: a file is missing, cut short, or hostile; the tensors were saved in another form than torch's.
    """
    try:
        return _open(folder, *_read_metadata(load_pickle(folder / METADATA)))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _broken(folder / METADATA) from error
    except OSError as error:
        raise UserError(f"{folder / METADATA} cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True)
class _Place:
    """Where in the folder a chunk is."""

    file: str
    start: int
    length: int


Places = Mapping[tuple[str, tuple[int, ...] | None], _Place]
"""(name, offsets of a chunk, or None for what is no tensor) -> where it is."""


def _open(
    folder: Path, entries: Mapping[str, Foreign], places: Places, paths: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """Read what is no tensor, and say how each weight is made."""
    missing = sorted({place.file for place in places.values() if not (folder / place.file).is_file()})
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing[:3])}.", "Copy the whole checkpoint folder.")
    root = next((key for key in WEIGHTS if any(path[0] == key and len(path) > 1 for path in paths.values())), None)
    content: dict[str, Any] = {}
    makers: dict[str, Callable[[], Tensor]] = {}
    for name, entry in entries.items():
        path = paths[name]
        if entry.name.endswith(".TensorStorageMetadata"):
            if root is None and len(path) == 1:
                makers[path[0]] = partial(_build, folder, name, entry, places)
            elif root is not None and path[0] == root:
                makers[".".join(path[1:])] = partial(_build, folder, name, entry, places)
        else:
            inside = content
            for key in path[:-1]:
                inside = inside.setdefault(key, {})
            inside[path[-1]] = _load(folder, places[name, None])
    return {**content, "state_dict": LazyWeights(makers)}


def load_rows(folder: Path) -> dict[tuple[str, ...], Callable[[int, int], Tensor]]:
    """Return for each tensor, under its key in the nested dictionary that was saved, a function `(first, end)` that
    reads these rows of it; of what is no matrix, `(0, 1)` reads all of a scalar.

    Raises:
        UserError: as `load_dcp`.
    """
    try:
        entries, places, paths = _read_metadata(load_pickle(folder / METADATA))
        tensors = {name: entry for name, entry in entries.items() if entry.name.endswith(".TensorStorageMetadata")}
        return {paths[name]: partial(_build, folder, name, entry, places) for name, entry in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _broken(folder / METADATA) from error
    except OSError as error:
        raise UserError(f"{folder / METADATA} cannot be read: {error.strerror or error}.") from error


def _build(folder: Path, name: str, entry: Foreign, places: Places, first: int = 0, end: int | None = None) -> Tensor:
    """Put the rows `first` ... `end` (all without it) of the tensor `name` together of the chunks that hold some."""
    try:
        shape, dtype = entry.state["size"], entry.state["properties"].state[0]
        chunks = [(chunk.state["offsets"], chunk.state["sizes"]) for chunk in entry.state["chunks"]]
        if math.prod(shape) != sum(math.prod(sizes) for _, sizes in chunks):
            raise ValueError("chunks that do not cover it")
        last = shape[0] if shape and end is None else end or 0
        whole = torch.empty((max(last - first, 0), *shape[1:]) if shape else (), dtype=dtype)
        for offsets, sizes in chunks:
            if shape and (offsets[0] >= last or offsets[0] + sizes[0] <= first):
                continue
            part = _load(folder, places[name, tuple(offsets)])
            if tuple(part.shape) != tuple(sizes):
                raise ValueError("a chunk of another shape")
            if shape:
                above = max(first - offsets[0], 0)
                part = part[above : last - offsets[0]]
                offsets, sizes = (max(offsets[0] - first, 0), *offsets[1:]), part.shape
            whole[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))] = part
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _broken(folder / METADATA) from error
    return whole


def _read_metadata(metadata: Foreign) -> tuple[dict[str, Foreign], Places, dict[str, tuple[str, ...]]]:
    """Return the entries by name, the place of each chunk (of what is no tensor with None), and the key of each name
    in the nested dictionary that was saved."""
    entries: dict[str, Foreign] = metadata.state["state_dict_metadata"]
    places: dict[tuple[str, tuple[int, ...] | None], _Place] = {}
    for index, info in metadata.state["storage_data"].items():
        where = info.state
        if where.get("transform_descriptors"):
            raise ValueError("it is compressed")
        if Path(where["relative_path"]).name != where["relative_path"]:
            raise ValueError("a file outside of the folder")
        offset = index.state.get("offset")
        key = (str(index.state["fqn"]), None if offset is None else tuple(offset))
        places[key] = _Place(where["relative_path"], int(where["offset"]), int(where["length"]))
    nested = metadata.state.get("planner_data") or {}
    paths = {name: tuple(str(part) for part in nested.get(name, (name,))) for name in entries}
    return entries, places, paths


def _load(folder: Path, place: _Place) -> Any:
    file = folder / place.file
    try:
        with open(file, "rb") as opened:
            opened.seek(place.start)
            return read_pth(opened.read(place.length), file)
    except ValueError as error:
        raise _broken(file) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error


def _broken(file: Path) -> UserError:
    return UserError(f"{file} is cut short, or is no file of torch.", "Copy it again, or use an earlier checkpoint.")
