"""Law 2: a run that was saved, stopped and resumed is the run that was never stopped."""

import signal
from collections.abc import Iterator
from pathlib import Path

import torch

from xtuner.config.spec import CheckpointSpec, RunSpec
from xtuner.engine.callbacks.checkpoint import Checkpoint
from xtuner.engine.loop import run_loop
from xtuner.engine.run import Callback, Run
from xtuner.engine.selftest.measure import Measured, is_exact, open_run, with_loop, without_dropout, worst
from xtuner.errors import UserError

LAW = "save and resume"
ITERATIONS, ACCUMULATE = 12, 3
STOPS = (7,)
"""Iterations after which the run is stopped: between two optimiser steps, the hardest place."""
NOISE = 1e-2
"""On a card some sums run in another order each time."""
DROPOUT = 0.1
"""So that random numbers matter."""


class Journal(Callback):
    """Notes the loss and the rows of every iteration."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.rows: dict[int, tuple[int, ...]] = {}

    def after_iteration(self, run: Run) -> None:
        """Note them."""
        self.losses[run.iteration] = run.metrics.scalars()["loss"]
        self.rows[run.iteration] = run.metrics.entries[-1].rows


class StopAt(Callback):
    """Asks for the end as SIGTERM does."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_iteration(self, run: Run) -> None:
        """Ask."""
        if run.iteration == self.iteration:
            run.wish.signal = signal.SIGTERM


def measure_resuming(spec: RunSpec, folder: Path) -> Iterator[tuple[str, Measured | None]]:
    """Train once in one go and once with stops, and compare losses, rows and weights; yields as `measure_trajectory`.

    The difference is infinite if the resumed run read other rows.
    """
    spec = without_dropout(spec, DROPOUT)
    spec = with_loop(spec, max_iters=ITERATIONS, accumulate=ACCUMULATE, log_every=1)
    spec = spec.model_copy(update={"checkpoint": CheckpointSpec(every=None, last=False)})
    yield "the run that is never stopped", None
    whole, expected, exact = _train(spec, folder / "whole", None)
    for stop in STOPS:
        what = f"stopped at iteration {stop} of {ITERATIONS}"
        yield what, None
        begun, _, _ = _train(spec, folder / f"stopped_{stop}", stop)
        path = str(folder / f"stopped_{stop}" / f"iter_{stop}.pth")
        resumed, found, _ = _train(spec.model_copy(update={"resume": path}), folder / f"stopped_{stop}", None)
        limit = 0.0 if exact else NOISE
        rows = {**begun.rows, **resumed.rows} == whole.rows
        numbers = sorted(resumed.losses)
        losses = worst([resumed.losses[n] for n in numbers], [whole.losses[n] for n in numbers])
        yield "", Measured(LAW, f"losses, {what}", losses if rows else float("inf"), limit)
        weights = float((found - expected).norm() / expected.norm())
        yield "", Measured(LAW, f"weights, {what}", weights, limit)


def _train(spec: RunSpec, folder: Path, stop: int | None) -> tuple[Journal, torch.Tensor, bool]:
    """Run the loop to its end, or until it is stopped and saved; returns what it did and the trained weights."""
    journal = Journal()
    with open_run(spec, folder) as run:
        run.callbacks = [Checkpoint(), journal, *([StopAt(stop)] if stop is not None else [])]
        try:
            run_loop(run)
        except UserError as error:
            if error.exit_code != 128 + signal.SIGTERM:
                raise
        weights = run.strategy.gather()
        return journal, torch.cat([weights[name].double().flatten() for name in sorted(weights)]), is_exact(run)
