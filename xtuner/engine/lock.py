"""One training per work dir: a lock that the system takes back when its holder dies, however it dies."""

import os
import socket
from pathlib import Path

from xtuner.errors import UserError
from xtuner.log import LOGGER

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
"""Holds the process number and the host of who trains; gone when nobody does, left behind without effect by a kill."""


class Lock:
    """The right to write into a work dir; only the process that writes takes it, readers and other ranks never do.

    The lock is POSIX's (`fcntl.lockf`), not `flock`: a forked process that outlives a killed training does not inherit
    it, and network file systems know it.
    """

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            UserError: another process has it; names that process.
        """
        self.path = folder / FILE
        self._file: int | None = None
        if fcntl is None:
            LOGGER.info("This system has no file locks: see to it that only one training writes into %s.", folder)
            return
        while self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:  # POSIX allows either
                holder = os.read(file, 300).decode(errors="replace")
                os.close(file)
                raise _occupied(folder, holder) from error
            except OSError as error:
                os.close(file)
                LOGGER.info("%s cannot be locked (%s): see to it that only one training writes there.", folder, error)
                return
            if _is_at(file, self.path):
                self._file = file
            else:
                os.close(file)  # its last holder removed it in this moment
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()} {socket.gethostname()}".encode())

    def release(self) -> None:
        """Let others have it."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _occupied(folder: Path, holder: str) -> UserError:
    pid, _, host = holder.partition(" ")
    who = f"process {pid}" if pid else "another process"
    where = f" on {host}" if host and host != socket.gethostname() else ""
    return UserError(
        f"Another training, {who}{where}, is writing into {folder}.",
        "Wait for its end, or choose another folder with --work-dir.",
    )
