"""Owns the bar that a terminal shows while data is read; elsewhere nothing is shown."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

REFRESH_SECONDS = 0.2


@contextlib.contextmanager
def show_progress(what: str) -> Iterator[Callable[[float], None]]:
    """Give a function that is told again and again which share of the work (0 to 1) is done."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),  # names of files may hold brackets
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        auto_refresh=False,  # no thread of its own: worker processes are forked while it is shown
        disable=not console.is_terminal,
    )
    shown = 0.0

    def show(share: float) -> None:
        nonlocal shown
        late = time.monotonic() - shown > REFRESH_SECONDS
        bar.update(task, completed=share, refresh=late)
        shown = time.monotonic() if late else shown

    with bar:
        task = bar.add_task(what, total=1.0)
        yield show
