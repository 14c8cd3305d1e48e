"""A run that is going on, everything its loop and callbacks share, and the moments at which callbacks act."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xtuner.checkpoint.run_record import RunRecord
from xtuner.config.spec import RunSpec
from xtuner.conversation.template import ChatTemplate
from xtuner.dataset.batch import IGNORE, Batch
from xtuner.dataset.collate import collate
from xtuner.dataset.pipeline import Prepared
from xtuner.dataset.sampler import Order
from xtuner.dataset.store import Pack, PackedDataset
from xtuner.engine.interrupt import Wish
from xtuner.engine.metrics import Metrics
from xtuner.engine.plan.plan import Plan
from xtuner.engine.schedule import Schedule
from xtuner.engine.spike import SpikeGuard
from xtuner.engine.strategy.base import Strategy
from xtuner.engine.workdir import WorkDir
from xtuner.objective.protocol import Objective


@dataclass
class Run:
    """One training. `iteration` and `border` are the only things that move.

    `iteration`: iterations done. `border`: those whose gradients are in the weights; between two optimiser steps it
    stays behind, and a resume goes on from there.
    """

    spec: RunSpec
    name: str
    seed: int
    tokenizer: Any
    data: Prepared
    objective: Objective
    strategy: Strategy
    model: nn.Module
    order: Order
    schedule: Schedule
    num_iters: int
    metrics: Metrics
    work: WorkDir
    record: RunRecord
    wish: Wish = field(default_factory=Wish)
    callbacks: list["Callback"] = field(default_factory=list)
    iteration: int = 0
    border: int = 0
    footing: dict[str, Any] = field(default_factory=dict)
    """Base model and data, as `footing.describe_footing` describes them in checkpoints."""
    spikes: SpikeGuard | None = None
    """Chooses the steps that are left out; None: none are."""
    plan: Plan | None = None
    """What it was expected to take; None: the sizes of the model are not known."""
    kept: list[str] = field(default_factory=list)
    """File names of the checkpoints that count for `checkpoint.keep`, oldest first."""

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template of the data."""
        return self.data.template

    @property
    def last(self) -> bool:
        """Whether no iteration is left."""
        return self.iteration >= self.num_iters

    def stopping(self) -> bool:
        """Whether someone wished to stop, on any rank; then all ranks know the signal.

        A signal that comes while the ranks agree stays noted: they agree on it the next time.
        """
        agreed = self.strategy.world.agree(self.wish.signal or 0)
        if agreed:
            self.wish.signal = agreed
        return agreed != 0

    def window(self) -> range:
        """Return the iterations of the next optimiser step."""
        every = self.spec.loop.accumulate
        return range(self.border, min((self.border // every + 1) * every, self.num_iters))

    def batch(self, iteration: int) -> Batch:
        """Return the batch of an iteration (counted from 0): a function of nothing but the data and the seed."""
        return self.part(self.data.train, self.order, iteration)

    def part(self, packs: Sequence[Pack] | PackedDataset, order: Order, iteration: int) -> Batch:
        """Return what this rank has of an iteration through `packs`; nothing is learned from a row that is there only
        to keep it busy."""
        rows = order.rows(iteration)
        batch = collate([packs[row] for row in rows], rows)
        if order.is_spare(iteration):
            batch = replace(batch, labels=torch.full_like(batch.labels, IGNORE))
        return self.strategy.cut(batch)

    def scalars(self) -> dict[str, float]:
        """Return what a log line says now, in the order of 0.1.x: learning rate, times, memory, losses, norm."""
        found = {"lr": self.schedule.lr(self.iteration - 1), **self.metrics.scalars()}
        for callback in self.callbacks:
            callback.add_scalars(self, found)
        return found


class Callback:
    """Does nothing at every moment; override what is needed. Callbacks never touch weights or gradients.

    Of several processes each has its own, and all call the same methods at the same moments.
    """

    first_rank_only = False
    """It only writes what rank 0 knows anyway, so the other ranks do without it."""
    measures: tuple[str, ...] = ()
    """Names of the numbers that it measures on data that are not trained and hands to `after_validation`."""

    def before_train(self, run: Run) -> None:
        """Everything is built, nothing is trained."""

    def after_iteration(self, run: Run) -> None:
        """`run.iteration` iterations are done."""

    def after_checkpoint(self, run: Run, path: Path) -> None:
        """A checkpoint of `run.iteration` is on the disk."""

    def after_validation(self, run: Run, scalars: dict[str, float]) -> None:
        """Numbers were measured on data that are not trained; the same on all ranks."""

    def after_train(self, run: Run) -> None:
        """All iterations are done and saved."""

    def add_scalars(self, run: Run, scalars: dict[str, float]) -> None:
        """Add to what a log line says."""

    def after_log(self, run: Run, scalars: dict[str, float]) -> None:
        """A log line that says `scalars` is written."""

    def close(self, run: Run) -> None:
        """The run is over, however it ended."""
