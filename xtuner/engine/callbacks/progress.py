"""How far the run is: a live bar on a terminal, log lines in the file, and in the file alone where there is a bar."""

import logging
import sys
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from xtuner.engine.run import Callback, Run
from xtuner.log import LOGGER


class ProgressLog(Callback):
    """A log line and a line of scalars every `loop.log_every` iterations, and a bar if `live` (None: on a terminal)."""

    def __init__(self, live: bool | None = None) -> None:
        self.live = sys.stdout.isatty() if live is None else live
        self.bar: Progress | None = None
        self.said = ""

    def before_train(self, run: Run) -> None:
        """Show the bar."""
        run.metrics.restart_clock()
        if not self.live:
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            console=Console(file=sys.stdout),
            refresh_per_second=4,
        )
        self.task = self.bar.add_task("training", total=run.num_iters, completed=run.iteration, said="")
        self.screens = [
            handler
            for handler in LOGGER.handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout
        ]
        self.bar.start()
        for handler in self.screens:  # rich puts its own stdout in place, which keeps lines above the bar
            handler.setStream(sys.stdout)

    def after_iteration(self, run: Run) -> None:
        """Move the bar; every `log_every` iterations, and at the last, say how it goes."""
        due = run.iteration % run.spec.loop.log_every == 0 or run.last
        if self.bar is not None:
            if due or not run.metrics.pending:  # else it would have to wait for the card
                self.said = self._summary(run)
            self.bar.update(self.task, completed=run.iteration, said=self.said)
        if not due:
            return
        scalars = run.scalars()
        line = log_line(run.iteration, run.num_iters, _time_left(run, scalars), scalars)
        if self.bar is None:
            LOGGER.info(line)
        else:
            run.work.note(line)
        run.work.write_scalars({**scalars, "iter": run.iteration, "step": run.iteration})
        for callback in run.callbacks:
            callback.after_log(run, scalars)

    def _summary(self, run: Run) -> str:
        scalars = run.metrics.scalars()
        speed = f"{run.metrics.tokens_per_second():,.0f} tokens/s"
        return f"loss {scalars['loss']:.4f}  {speed}  {_time_left(run, scalars)} left"

    def after_train(self, run: Run) -> None:
        """Put the bar away."""
        self.close(run)

    def close(self, run: Run) -> None:
        """Put the bar away, also after a failure."""
        if self.bar is None:
            return
        self.bar.stop()
        self.bar = None
        for handler in self.screens:
            handler.setStream(sys.stdout)


def _time_left(run: Run, scalars: dict[str, float]) -> timedelta:
    return timedelta(seconds=int(scalars["time"] * (run.num_iters - run.iteration)))


def log_line(iteration: int, num_iters: int, eta: timedelta, scalars: dict[str, float]) -> str:
    """Write the line of 0.1.x, which people's scripts read."""
    width = len(str(num_iters))
    parts = [f"lr: {scalars['lr']:.4e}", f"eta: {eta}"]
    for name, value in scalars.items():
        if name != "lr":
            parts.append(f"{name}: {value:.0f}" if name == "memory" else f"{name}: {value:.4f}")
    order = {"time": 0, "data_time": 1, "memory": 2, "loss": 3}
    parts[2:] = sorted(parts[2:], key=lambda part: order.get(part.split(":")[0], 4))
    return f"Iter(train) [{iteration:>{width}}/{num_iters}]  {'  '.join(parts)}"
