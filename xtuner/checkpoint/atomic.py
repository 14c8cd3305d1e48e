"""Files that are whole or not there: written aside, flushed to the disk, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from xtuner.checkpoint.folder import writing

ASIDE = ".part"
"""Ending of the hidden file that is written before the rename; one left behind is the trace of a killed process."""


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a binary file to write; `path` appears, or changes, only when all of it is on the disk.

    Raises:
        UserError: the disk is full or the folder cannot be written; a file that was at `path` before is untouched.
    """
    aside = path.with_name(f".{path.name}{ASIDE}")
    try:
        with writing(path):
            with open(aside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # on a read-only disk this fails too, and must not hide why
            aside.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut, where the system can do that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in `folder`; must not run while another process writes there."""
    for file in folder.glob(f".*{ASIDE}"):
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
