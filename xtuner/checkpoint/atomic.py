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
OLD = f".old{ASIDE}"
"""Ending of what stood in the place of something new, for the moment in which a folder is exchanged."""


@contextmanager
def whole_file(path: Path, *, over_folder: bool = False) -> Iterator[IO[bytes]]:
    """Give a binary file to write; `path` appears, or changes, only when all of it is on the disk.

    `over_folder`: it may take the place of a folder.

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
            if over_folder:
                put_in_place(aside, path)
            else:
                os.replace(aside, path)
                sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # on a read-only disk this fails too, and must not hide why
            aside.unlink(missing_ok=True)
        raise


def put_in_place(aside: Path, path: Path) -> None:
    """Let the file or folder that was written at `aside` be `path`, whatever was there.

    The system exchanges files in one step, and folders in two. Between these what was there waits under another name,
    where `remove_leftovers` finds it: a process that is killed then has lost neither.
    """
    old = path.with_name(f".{path.name}{OLD}")
    if path.exists() and (path.is_dir() or aside.is_dir()):
        discard(old)
        os.replace(path, old)
    os.replace(aside, path)
    sync_folder(path.parent)
    discard(old)


def discard(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    """Delete what killed writers left in `folder`; must not run while another process writes there.

    What they had moved out of the way of something that never came is put back.
    """
    for old in folder.glob(f".*{OLD}"):
        path = folder / old.name[1 : -len(OLD)]
        if not path.exists():
            os.replace(old, path)
    for file in folder.glob(f".*{ASIDE}"):
        discard(file)
