"""Owns the folder of prepared data: entries named by a hash of all that they depend on, written whole or not at all."""

import contextlib
import errno
import hashlib
import inspect
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xtuner.conversation
import xtuner.dataset
from xtuner.dataset.store import ABOUT
from xtuner.errors import UserError

DAY = 24 * 3600
UNUSED_DAYS = 60
LOOKING = {"inspection", "table"}
"""Folders of code that looks at data or rewrites files, and prepares none."""
PART = ".part"
OURS = re.compile(rf"[0-9a-f]{{32}}(?P<part>\.\d+{re.escape(PART)})?")
"""Names of entries, and of those that are being written."""


def cache_folder(given: str | None) -> Path:
    """Return the folder: `given`, or xtuner/data in the user's cache folder."""
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xtuner" / "data"


def make_key(*parts: Any) -> str:
    """Hash `parts` together with the source code that prepares data: a change there makes new entries."""
    digest = hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass"))
    for room in (xtuner.conversation, xtuner.dataset):
        for file in sorted(Path(str(room.__file__)).parent.rglob("*.py")):
            if not LOOKING & set(file.parts):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def hash_code(function: Callable[..., Any]) -> str:
    """Hash the file that a user's function stands in."""
    file = inspect.getsourcefile(function)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else repr(function)


@contextlib.contextmanager
def new_entry(folder: Path, key: str) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes the entry `key` when the block ends well, and vanishes otherwise.

    Two processes may fill the same entry at once; the first to finish wins and both find it whole.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    part = folder / f"{key}.{os.getpid()}{PART}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        try:
            part.rename(folder / key)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"The disk is full: prepared data did not fit into {folder}.",
                "Free some space, or choose another folder with data.cache=FOLDER.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"Prepared data cannot be written to {folder} ({error.strerror}).",
                "Choose another folder with data.cache=FOLDER.",
            ) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what crashed runs left behind, and entries that nobody used for long.

    The folder may be one of the user's own, so nothing is touched but what bears a name of ours and, if it is an
    entry, holds our `about.json`.
    """
    now = time.time()
    for entry in folder.iterdir() if folder.is_dir() else ():
        named = OURS.fullmatch(entry.name)
        if named is None or not (named["part"] or (entry / ABOUT).is_file()):
            continue
        keep = DAY if named["part"] else UNUSED_DAYS * DAY
        with contextlib.suppress(OSError):
            if now - entry.stat().st_mtime > keep:
                shutil.rmtree(entry)
