"""The `.pth` file of a run: written so that it is never half there, read so that no code comes out of it."""

import errno
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtuner.checkpoint.atomic import whole_file
from xtuner.errors import UserError

POINTER = "last_checkpoint"
"""A text file in the work dir: the absolute path of the newest checkpoint, without a newline."""

PLAIN = (str, int, float, bool, type(None), Tensor)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (dicts, lists, numbers, texts and tensors only) to `path`, whole or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written. What was at `path` before is intact.
    """
    _check_plain(state, "state")
    try:
        with whole_file(path) as file:
            torch.save(dict(state), file)
    except UserError as error:
        raise UserError(f"{error.what} Earlier checkpoints are intact.", error.fix) from error


def load_state(path: Path) -> dict[str, Any]:
    """Read a `.pth` file; tensors stay on the disk until they are touched, and land on the CPU.

    A colon at the end of `path` is dropped: `ls -t` prints folders that way and people paste it.

    Raises:
        UserError: no such file, cut short, not a checkpoint, or it holds Python objects instead of plain data.
    """
    path = strip_colon(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a checkpoint file.", "Give a file such as iter_500.pth.")
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.", "Type: ls -t work_dirs/*/*.pth")
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise UserError(f"{path} is not a checkpoint, or it is cut short.", "Use an earlier checkpoint.") from error
        raise UserError(
            f"{path} holds Python objects ({found[1]}), which are not opened because opening them runs their code.",
            "Use a checkpoint written by this version.",
        ) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch seeks to where the end of a cut zip file should be
            raise UserError(f"{path} is cut short.", "Use an earlier checkpoint.") from error
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a checkpoint, or it is cut short.", "Use an earlier checkpoint.") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(state).__name__}.")
    return state


def strip_colon(path: Path) -> Path:
    """Drop a colon at the end that is not part of the name."""
    text = str(path)
    return Path(text[:-1]) if text.endswith(":") and not path.exists() else path


def write_pointer(work_dir: Path, checkpoint: Path) -> None:
    """Make `checkpoint` the newest one of `work_dir`."""
    with whole_file(work_dir / POINTER) as file:
        file.write(str(checkpoint.resolve()).encode())


def find_last(work_dir: Path) -> Path | None:
    """Return the newest checkpoint of a work dir, or None.

    That is the one the pointer file names (also when the folder was moved since); without it, the one with the
    highest number.
    """
    pointer = work_dir / POINTER
    if pointer.is_file():
        named = strip_colon(Path(pointer.read_text(encoding="utf-8").strip()))
        for candidate in (named, work_dir / named.name):
            if candidate.exists():
                return candidate
    numbered = [
        (int(match[2]), match[1] == "iter", file)
        for file in work_dir.glob("*.pth")
        if (match := re.fullmatch(r"(iter|epoch)_(\d+)\.pth", file.name))
    ]
    return max(numbered)[2] if numbered else None


def _check_plain(value: Any, where: str) -> None:
    """Own invariant: nothing goes into a checkpoint that `weights_only` would refuse to read back."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            assert isinstance(key, str | int), f"{where} has a key of type {type(key).__name__}"
            _check_plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    else:
        assert isinstance(value, PLAIN), f"{where} is a {type(value).__name__}, not plain data"
