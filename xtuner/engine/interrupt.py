"""Ctrl-C, SIGTERM and the end of the terminal: a wish to stop that waits for the end of the iteration."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGHUP"):  # a POSIX system
    NAMES[signal.SIGHUP] = "SIGHUP (its terminal is gone)"


@dataclass
class Wish:
    """Whether someone asked to stop."""

    signal: int | None = None

    @property
    def name(self) -> str:
        """What was pressed or sent."""
        return NAMES[signal.Signals(self.signal)] if self.signal is not None else ""

    @property
    def exit_code(self) -> int:
        """The exit code shells expect: 128 and the signal's number."""
        assert self.signal is not None
        return 128 + self.signal


def not_again(number: int, frame: FrameType | None) -> None:
    """Do nothing: the process ends already, and has yet to say why."""


@contextmanager
def at_once() -> Iterator[None]:
    """Let Ctrl-C end the process as the system does it: where others are waited for in compiled code, Python would hear
    of it only when the wait is over, half an hour later."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def listen() -> Iterator[Wish]:
    """Turn signals into a wish; a second Ctrl-C acts at once, as it did before.

    A second SIGTERM does not: launchers and schedulers send it to a process and to its parent, which passes it on, and
    whoever cannot wait sends SIGKILL. Nor does it end a process that has obeyed the first one and is about to say so.
    Under `nohup` the end of the terminal stays ignored. Outside the main thread, where Python lets nobody listen,
    nothing changes.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    previous: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        wish.signal = wish.signal or number
        signal.signal(signal.SIGINT, previous[signal.SIGINT])

    for each in map(int, NAMES):
        before = signal.getsignal(each)
        if each in (signal.SIGINT, signal.SIGTERM) or before is not signal.SIG_IGN:
            previous[each] = before
            signal.signal(each, note)
    try:
        yield wish
    finally:
        for each, handler in previous.items():
            if signal.getsignal(each) is note:  # else something else was decided meanwhile, as when a rank is gone
                ends = wish.signal is not None and each != signal.SIGINT and handler is signal.SIG_DFL
                signal.signal(each, not_again if ends else handler)
