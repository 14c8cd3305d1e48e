"""The learning rate as a pure function of the iteration, so that a resumed run needs no schedule state."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from xtuner.config.spec import ScheduleSpec
from xtuner.engine.schedule_chain import Chain


class Schedule(Protocol):
    """What a run asks of its schedule."""

    def lr(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint says of it: plain values."""
        ...


@dataclass(frozen=True)
class WarmedUp:
    """A linear warm-up from `start_factor * peak` to `peak` over `warmup` iterations, then `name` down to `min_lr`.

    The numbers are those of LinearLR and CosineAnnealingLR that 0.1.x chained (mmengine, stepped every iteration),
    but for a warm-up of one iteration, after which theirs stays at the start value.
    """

    name: Literal["cosine", "linear", "constant"]
    peak: float
    num_iters: int
    warmup: int = 0
    start_factor: float = 1e-5
    min_lr: float = 0.0

    def lr(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        if iteration < self.warmup:
            progress = iteration / max(self.warmup - 1, 1)
            return self.peak * (self.start_factor + (1 - self.start_factor) * progress)
        step, steps = iteration - self.warmup, max(self.num_iters - self.warmup, 1)
        if self.name == "cosine":
            return self.min_lr + (self.peak - self.min_lr) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2
        if self.name == "linear":
            return self.peak + (self.min_lr - self.peak) * min(step / max(steps - 1, 1), 1.0)
        return self.peak

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint says of it."""
        return dict(vars(self))


def build_schedule(spec: ScheduleSpec, peak: float, num_iters: int, iters_per_epoch: int = 1) -> Schedule:
    """Fit the schedule to `num_iters` iterations; a fraction of a warm-up iteration is dropped, as in 0.1.x."""
    if spec.chain:
        return Chain(spec.chain, peak, num_iters, iters_per_epoch)
    warmup = int(spec.warmup * num_iters + 1e-6) if spec.warmup_iters is None else min(spec.warmup_iters, num_iters)
    return WarmedUp(spec.name, peak, num_iters, warmup, spec.warmup_start, spec.min_lr)
