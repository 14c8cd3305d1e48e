"""Reads what `torch.save` wrote, by anyone and with whatever objects inside, without running anything of it.

Tensors stay in the file, which is mapped into memory, until they are touched. Objects of classes that are not known
here (mmengine's message hub, DeepSpeed's loss scaler, ...) become `Foreign`. Torch's own `weights_only` reader is not
used: it refuses foreign classes instead of passing over them, and a nested key ends its process.
"""

import io
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from xtuner.checkpoint.pth_pickle import Forbidden, Foreign, Malformed, read_pickle
from xtuner.errors import UserError

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
MAGIC = 0x1950A86A20F9469CFC6C
"""What a file of torch < 1.6 begins with."""
HEADER = struct.Struct("<4s22xHH")
"""What stands before a file in a zip: a signature, and at the end the lengths of its name and of further fields."""


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    bytes: torch.UntypedStorage


def load_pth(path: Path) -> Any:
    """Return what a file of `torch.save` holds: plain Python values, tensors on the CPU, `Foreign` objects.

    Raises:
        UserError: it names a function of Python's own library, such as os.system.
        ValueError, OSError: it is cut short, of another kind, or no such file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file, _guard(path):
        zipped = file.read(2) == b"PK"
        file.seek(0)
        if not zipped:
            return _Sequence(file, size).content
        mapped: Any = torch.UntypedStorage.from_file(str(path), False, size)
        archive = _Archive(file, mapped)
        return read_pickle(archive.pickle, CALLED, CONSTANTS, archive.storage)


def read_pth(data: bytes, path: Path) -> Any:
    """Return what bytes out of the file `path`, written by `torch.save`, hold; as `load_pth`, but in memory.

    Raises:
        UserError: they name a function of Python's own library.
        ValueError, OSError: they are cut short or nothing of torch.
    """
    with _guard(path):
        archive = _Archive(io.BytesIO(data), torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage())
        return read_pickle(archive.pickle, CALLED, CONSTANTS, archive.storage)


def load_pickle(path: Path) -> Any:
    """Return what a file of Python's own `pickle` holds.

    Raises: as `load_pth`.
    """
    with _guard(path):
        return read_pickle(path.read_bytes(), CALLED, CONSTANTS)


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    """Name the file that wants something run, and call what is damaged damaged."""
    try:
        yield
    except Forbidden as error:
        raise UserError(
            f"{path} wants {error} to be run when it is opened; nothing of it was run.",
            "Get the checkpoint from where you trust it.",
        ) from None
    except (zipfile.BadZipFile, KeyError, struct.error, EOFError, RuntimeError, OverflowError) as error:
        raise Malformed(str(error)) from error


class _Archive:
    """The zip that torch writes: `<name>/data.pkl`, and in `<name>/data/` the numbers of each storage, uncompressed.

    `content` are the bytes of all of `file`; storages are views into it.
    """

    def __init__(self, file: BinaryIO, content: torch.UntypedStorage) -> None:
        with zipfile.ZipFile(file) as archive:
            self.files = {info.filename: info for info in archive.infolist()}
            found = next((name for name in self.files if name.endswith("/data.pkl") and name.count("/") == 1), None)
            if found is None:
                raise Malformed("no data.pkl")
            self.root = found.removesuffix("data.pkl")
            order = self.files.get(f"{self.root}byteorder")
            if any(info.compress_type != zipfile.ZIP_STORED for info in self.files.values()):
                raise Malformed("it is compressed")
            if order is not None and archive.read(order) != b"little":
                raise Malformed("its numbers are in another order of bytes")
            self.pickle = archive.read(found)
        self.file = file
        self.content = content
        self.seen: dict[str, torch.UntypedStorage] = {}

    def storage(self, identity: Any) -> _Storage:
        """Return the storage that a persistent id, ("storage", kind, key, device, number of elements), stands for."""
        key, dtype, count = _identity(identity)
        if key not in self.seen:
            self.seen[key] = self._bytes(f"{self.root}data/{key}")
        storage = self.seen[key]
        if count * dtype.itemsize > storage.nbytes():
            raise Malformed("a storage that is too short")
        return _Storage(dtype, storage)

    def _bytes(self, name: str) -> torch.UntypedStorage:
        info = self.files[name]
        self.file.seek(info.header_offset)
        signature, name_length, extra_length = HEADER.unpack(self.file.read(HEADER.size))
        start = info.header_offset + HEADER.size + name_length + extra_length
        if signature != b"PK\x03\x04" or start + info.file_size > self.content.nbytes():
            raise Malformed("a storage outside of the file")
        if info.file_size == 0:
            return torch.UntypedStorage(0)
        part: torch.UntypedStorage = self.content[start : start + info.file_size]
        return part if part.data_ptr() % 16 == 0 else part.clone()  # torch writes files at multiples of 64


class _Sequence:
    """The form of torch before 1.6: pickles one after the other, then the numbers of each storage. It is read whole."""

    def __init__(self, data: BinaryIO, size: int) -> None:
        self.left = size
        self.seen: dict[str, torch.UntypedStorage] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        if read_pickle(data, {}, {}) != MAGIC:
            raise Malformed("it does not begin like a file of torch")
        for _ in ("version", "kind of machine"):
            read_pickle(data, {}, {})
        self.content = read_pickle(data, CALLED, CONSTANTS, self.storage)
        for key in read_pickle(data, {}, {}):
            (count,) = struct.unpack("<q", data.read(8))
            storage = self.seen[key]
            numbers = bytearray(data.read(storage.nbytes()))
            if count * self.dtypes[key].itemsize != len(numbers) or len(numbers) != storage.nbytes():
                raise Malformed("a storage that is too short")
            if numbers:
                storage.copy_(torch.frombuffer(numbers, dtype=torch.uint8).untyped_storage())

    def storage(self, identity: Any) -> _Storage:
        """Return the storage of a persistent id, to be filled when its numbers come."""
        key, dtype, count = _identity(identity[:5])
        if identity[5] is not None:
            raise Malformed("a view of a storage")
        if key not in self.seen:
            self.left -= count * dtype.itemsize
            if self.left < 0:
                raise Malformed("storages larger than the file")
            self.seen[key], self.dtypes[key] = torch.UntypedStorage(count * dtype.itemsize), dtype
        return _Storage(dtype, self.seen[key])


def _identity(identity: Any) -> tuple[str, torch.dtype, int]:
    """Return key, type and number of elements of a storage."""
    word, kind, key, _, count = identity
    dtype = STORAGES.get(getattr(kind, "name", "").rpartition(".")[2])
    if word not in ("storage", b"storage") or dtype is None or not isinstance(count, int) or count < 0:
        raise Malformed("a storage of an unknown kind")
    return str(key), dtype, count


def _tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any, dtype: Any = None
) -> Tensor:
    """Return a view of a storage, that lies in it."""
    dtype = dtype or storage.dtype
    if not all(isinstance(number, int) and 0 <= number < 2**62 for number in (offset, *size, *stride)):
        raise Malformed("a tensor of an impossible shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if 0 not in size and (last + 1) * dtype.itemsize > storage.bytes.nbytes():
        raise Malformed("a tensor outside of its storage")
    if 0 in size:
        return torch.empty(size, dtype=dtype)
    return torch.empty(0, dtype=dtype).set_(storage.bytes, offset, size, stride)


def _tensor_with_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *rest: Any
) -> Tensor:
    if not isinstance(dtype, torch.dtype):
        raise Malformed("a tensor of an unknown dtype")
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _same(tensor: Any, *_: Any) -> Any:
    """A parameter is read as the tensor in it."""
    return tensor


def _of_type(_: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes, or of a class of its own: of ours the tensor is meant, others stay foreign."""
    name = getattr(kind, "name", "")
    if name in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        return _tensor(*arguments)
    return Foreign(name, arguments, state)


CALLED: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.nn.parameter.Parameter": _same,
    "torch.Size": tuple,
}
"""What a pickle of torch calls, and what is called here in its place."""
CONSTANTS: Mapping[str, Any] = DTYPES
