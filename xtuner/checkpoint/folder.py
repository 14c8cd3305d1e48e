"""Output folders: written aside and moved into place when complete, so that nothing half-written is ever found."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from xtuner.errors import UserError

PARTIAL = ".partial"
WEIGHTS = re.compile(r"(model|pytorch_model|adapter_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
"""File names that loaders of transformers and PEFT look for."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write below `path` into a sentence.

    Raises:
        UserError: the disk is full, the folder is read-only, and so on.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and "inline_container" not in text:
            raise
        # safetensors keeps the system's error number inside its message, torch.save only says that its file is short
        number = error.errno if isinstance(error, OSError) else None
        full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or re.search(r"os error (28|122|27)\b", text)
        if full or isinstance(error, RuntimeError):
            raise UserError(
                f"The disk is full while writing {path}.", "Free some space, or write elsewhere."
            ) from error
        reason = (error.strerror or text) if isinstance(error, OSError) else text
        raise UserError(f"{path} cannot be written: {reason}.", "Choose a folder that you can write to.") from error


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder inside `folder`; its files move into `folder` at the end, or vanish if the body fails.

    Weight files of an earlier export that the new one does not replace are removed, since loaders would mix them.

    Raises:
        UserError: `folder` is a file, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; a folder is needed to save into.", "Give another name.")
    existed = folder.exists()
    aside = folder / PARTIAL
    with writing(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    try:
        yield aside
        with writing(folder):
            _publish(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _publish(aside: Path, folder: Path) -> None:
    made = {path.name for path in aside.iterdir()}
    kinds = {_is_adapter(name) for name in made if WEIGHTS.fullmatch(name)}
    stale = [
        old
        for old in folder.iterdir()
        if WEIGHTS.fullmatch(old.name) and _is_adapter(old.name) in kinds and old.name not in made
    ]
    for name in sorted(made):
        os.replace(aside / name, folder / name)
    for old in stale:  # last, so that a failure above leaves no folder without weights
        old.unlink()
    aside.rmdir()


def _is_adapter(name: str) -> bool:
    return name.startswith("adapter_model")


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuse early what will not fit on the disk of `folder` (which need not exist yet).

    Raises:
        UserError: less than `num_bytes` are free.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise UserError(
            f"{folder} needs {num_bytes / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there.",
            "Free some space, or write elsewhere.",
        )
