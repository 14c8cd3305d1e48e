"""Weights on disk: one tensor at a time out of and into (sharded) safetensors or .bin files, in bounded memory."""

import json
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xtuner.checkpoint.folder import writing
from xtuner.checkpoint.pth import load_pth
from xtuner.errors import UserError

# in the order in which transformers looks for them
SINGLE_AND_INDEX = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
SHARD = re.compile(r"(model|pytorch_model)-(\d+)-of-(\d+)\.(safetensors|bin)")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
MAPPED_BYTES = 2**26
"""A mapped file is opened anew after this much was read from it, so that the pages read do not pile up in memory."""


def read_size(text: str | int) -> int:
    """Return the bytes that a size such as `2GB`, `500MB` or `1.5GiB` stands for.

    Raises:
        UserError: not a size, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    unit = UNITS.get(found[2].upper()) if found else None
    size = int(float(found[1]) * unit) if found and unit else 0
    if size <= 0:
        raise UserError(f"{text!r} is not a size of a file.", "Write for example 2GB or 500MB.", exit_code=2)
    return size


def _find_files(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """Return the weight files of a folder, and which tensor is in which if an index says so."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", "Give the folder of a model.")
    for single, index in SINGLE_AND_INDEX:
        if (folder / single).is_file():
            return [folder / single], {}
        if (folder / index).is_file():
            file_of = _read_index(folder / index)
            return sorted(set(file_of.values())), file_of
    shards = [path for path in sorted(folder.iterdir()) if SHARD.fullmatch(path.name)]
    if not shards:
        raise UserError(
            f"There are no weights (model.safetensors or pytorch_model.bin) in {folder}.",
            "Give the folder of a complete model.",
        )
    count = int(shards[0].stem.rsplit("-", 1)[1])
    if len(shards) != count:
        raise UserError(f"{folder} has {len(shards)} of {count} shards.", "Copy or download it again.")
    return shards, {}


def _read_index(index: Path) -> dict[str, Path]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        file_of = {str(name): index.parent / file for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of weights.", "Copy or download it again.") from error
    for name in map(str, weight_map.values()):
        if Path(name).name != name:
            raise UserError(
                f"{index} names a file outside of its folder: {name}.", "Get the model from where you trust it."
            )
    missing = sorted({file.name for file in file_of.values() if not file.is_file()})
    if missing:
        raise UserError(f"{index.parent} lacks {', '.join(missing[:3])}.", "Copy or download it again.")
    return file_of


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the libraries say about a damaged file into a sentence that names it.

    Raises:
        UserError: `path` is cut short or of another kind.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is cut short or is no weight file.", "Copy or download it again.") from error


class ShardReader:
    """Reads the tensors of a checkpoint folder (safetensors or .bin, one file or many), one at a time.

    Memory: the tensors handed out, and at most `MAPPED_BYTES` of mapped file.

    Raises:
        UserError: no weights, a shard is missing, cut short, or not a weight file (all methods).
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._open: _WeightFile | None = None
        self.files, self._file_of = _find_files(self.folder)
        if not self._file_of:
            self._file_of = {name: file for file in self.files for name in self._enter(file).names()}

    def names(self) -> list[str]:
        """All tensor names, file by file."""
        return sorted(self._file_of, key=lambda name: self._file_of[name])

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    @property
    def safe(self) -> bool:
        """Whether the weights are safetensors."""
        return all(file.suffix == ".safetensors" for file in self.files)

    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.stat().st_size for file in self.files)

    def get(self, name: str) -> Tensor:
        """Return one tensor, in memory of its own."""
        file = self._find(name)
        tensor = file.get(name)
        if file.bytes_read > MAPPED_BYTES and file.mapped:
            self._open = None
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._find(name).shape(name)

    def _find(self, name: str) -> "_WeightFile":
        file = self._enter(self._file_of[name])
        if name not in file:
            raise UserError(
                f"The index in {self.folder} says that {name} is in {file.path.name}, and it is not.",
                "Copy or download the model again.",
            )
        return file

    def _enter(self, file: Path) -> "_WeightFile":
        if self._open is None or self._open.path != file:
            self._open = None
            self._open = _SafeFile(file) if file.suffix == ".safetensors" else _BinFile(file)
        return self._open


class _WeightFile(ABC):
    """One open weight file."""

    mapped = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0

    @abstractmethod
    def names(self) -> list[str]: ...

    @abstractmethod
    def __contains__(self, name: str) -> bool: ...

    @abstractmethod
    def _view(self, name: str) -> Tensor: ...

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._view(name).shape)

    def get(self, name: str) -> Tensor:
        with reading(self.path):
            tensor = self._view(name).clone()
        self.bytes_read += tensor.nbytes
        return tensor


class _SafeFile(_WeightFile):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with reading(path):
            self._file: Any = safe_open(path, framework="pt", device="cpu")
            self._names = frozenset(self._file.keys())

    def names(self) -> list[str]:
        return sorted(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def _view(self, name: str) -> Tensor:
        return self._file.get_tensor(name)


class _BinFile(_WeightFile):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.mapped = zipfile.is_zipfile(path)  # files of torch < 1.6 are not, and can only be read whole
        self._tensors = load_bin(path, mapped=self.mapped)

    def names(self) -> list[str]:
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def _view(self, name: str) -> Tensor:
        return self._tensors[name]


def load_bin(path: Path, *, mapped: bool = True) -> dict[str, Tensor]:
    """Load the tensors of a .bin file without running code from it; `mapped`: from the disk, when touched.

    Raises:
        UserError: cut short, or something else than a dictionary of tensors.
    """
    with reading(path):
        tensors = load_pth(path)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path} does not hold plain tensors.", "Give the weights as transformers or PEFT save them.")
    return tensors if mapped else {name: tensor.clone() for name, tensor in tensors.items()}


class ShardWriter:
    """Writes tensors into shards of at most `max_bytes`, and their index, under the names transformers expects.

    Memory: one shard. Files carry their final names only after `close`; leaving a `with` block through an
    exception removes them.

    Raises:
        UserError: the disk is full or the folder cannot be written (all methods).
    """

    def __init__(self, folder: Path | str, max_bytes: int, safe: bool = True) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.safe = safe
        self.total_bytes = 0
        self._names: set[str] = set()
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._parts: list[tuple[Path, list[str]]] = []
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; a full shard goes to the disk. A tensor above the limit gets a shard of its own."""
        assert name not in self._names, f"{name} twice"
        self._names.add(name)
        if self._pending and self._pending_bytes + tensor.nbytes > self.max_bytes:
            self._flush()
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # a view would drag its whole storage into a .bin file
        self._pending[name] = tensor
        self._pending_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def close(self) -> list[Path]:
        """Write what is left and the index, and give the files their names; returns them."""
        if self._pending:
            self._flush()
        stem, suffix = ("model", "safetensors") if self.safe else ("pytorch_model", "bin")
        count = len(self._parts)
        files: list[Path] = []
        weight_map: dict[str, str] = {}
        with writing(self.folder):
            for place, (part, names) in enumerate(self._parts, start=1):
                number = "" if count == 1 else f"-{place:05d}-of-{count:05d}"
                file = self.folder / f"{stem}{number}.{suffix}"
                os.replace(part, file)
                files.append(file)
                weight_map |= dict.fromkeys(names, file.name)
            if count > 1:
                index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
                file = self.folder / f"{stem}.{suffix}.index.json"
                file.write_text(json.dumps(index, indent=2) + "\n", "utf-8")
                files.append(file)
        self._parts = []
        return files

    def discard(self) -> None:
        """Remove what was not closed."""
        for part, _ in self._parts:
            part.unlink(missing_ok=True)
        self._parts, self._pending = [], {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self.discard()

    def _flush(self) -> None:
        part = self.folder / f"shard-{len(self._parts) + 1:05d}.partial"
        self._parts.append((part, list(self._pending)))
        save_tensors(part, self._pending, safe=self.safe)
        self._pending, self._pending_bytes = {}, 0


def save_tensors(path: Path, tensors: dict[str, Tensor], *, safe: bool) -> None:
    """Write tensors into one file and wait until it is on the disk.

    Raises:
        UserError: the disk is full or the file cannot be written.
    """
    with writing(path):
        if safe:
            path.touch()
            mode = path.stat().st_mode
            save_file(tensors, path, metadata={"format": "pt"})
            path.chmod(mode)  # safetensors makes files that nobody else can read
        else:
            torch.save(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
