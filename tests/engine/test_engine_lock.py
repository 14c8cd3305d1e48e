"""Two trainings in one work dir: the second one stops at once, and the first one's death frees the folder."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xtuner.engine import lock
from xtuner.engine.lock import FILE, Lock
from xtuner.engine.workdir import WorkDir
from xtuner.errors import UserError

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="no file locks here")

HOLD = """
import os, sys
from pathlib import Path
from xtuner.engine.lock import Lock
Lock(Path(sys.argv[1]))
print("held", flush=True)
if "fork" in sys.argv and os.fork() == 0:
    print(os.getpid(), flush=True)
sys.stdin.read()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start another process that holds the lock of `tmp_path`."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        other = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), *words], stdin=pipe, stdout=pipe, text=True
        )
        started.append(other)
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        return other

    yield run
    for other in started:
        other.kill()
        other.wait()


def test_the_second_training_names_the_first(start: Start, tmp_path: Path) -> None:
    other = start()
    with pytest.raises(UserError, match=rf"Another training, process {other.pid}, is writing into ") as caught:
        WorkDir(tmp_path, "a.yaml", "")
    assert "--work-dir" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "nothing was written"
    assert (tmp_path / FILE).read_text().split()[0] == str(other.pid)


def test_a_killed_training_leaves_no_lock(start: Start, tmp_path: Path) -> None:
    """Not even when a process that it forked lives on."""
    other = start("fork")
    assert other.stdout is not None
    child = int(other.stdout.readline())
    try:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert (tmp_path / FILE).is_file()
        WorkDir(tmp_path, "a.yaml", "").close()
    finally:
        os.kill(child, signal.SIGKILL)
    assert not (tmp_path / FILE).exists(), "and no file of it after the next run"


def test_a_holder_on_another_host_is_named(start: Start, tmp_path: Path) -> None:
    start()
    (tmp_path / FILE).write_text("77 node-b")
    with pytest.raises(UserError, match="process 77 on node-b"):
        Lock(tmp_path)


def test_a_work_dir_that_cannot_be_opened_is_free_again(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        WorkDir(tmp_path, "a.yaml", "")
    assert not (tmp_path / FILE).exists()


def test_a_system_without_locks_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock.LOGGER, "propagate", True)
    with caplog.at_level("INFO", "xtuner"):
        held = Lock(tmp_path)
    assert "no file locks" in caplog.text
    held.release()
    assert not (tmp_path / FILE).exists()


def _take_and_release(folder: Path) -> None:
    for _ in range(200):
        try:
            held = Lock(folder)
        except UserError:
            continue
        mark = folder / "inside"
        mark.touch(exist_ok=False)  # fails if another one is inside
        mark.unlink()
        held.release()


def test_never_two_at_once(tmp_path: Path) -> None:
    """Also in the moment in which a holder removes its file."""
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_take_and_release, args=(tmp_path,)) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0] * 4
