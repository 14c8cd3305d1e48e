"""Schedules that are chained as in 0.1.x: each makes the learning rate of an iteration from that of the one before.

The rules are those of mmengine 0.10 (`LinearParamScheduler`, `CosineAnnealingParamScheduler`,
`ConstantParamScheduler`), which 0.1.x used; so overlaps and gaps come out as there.
"""

import math
from array import array
from collections.abc import Sequence
from typing import Any

from xtuner.config.schedule_spec import ScheduleStep


class Chain:
    """The learning rates of `num_iters` iterations, worked out at once: 8 bytes each."""

    def __init__(self, steps: Sequence[ScheduleStep], peak: float, num_iters: int, iters_per_epoch: int) -> None:
        self.steps = list(steps)
        self.peak = peak
        self.num_iters = num_iters
        self.iters_per_epoch = iters_per_epoch
        links = [_Link(step, peak, num_iters, iters_per_epoch) for step in self.steps]
        # those that move at every iteration do so before those that move at the end of an epoch
        links_by_iter = [link for link in links if link.every == 1]
        links_by_epoch = [link for link in links if link.every != 1]
        self._rates = array("d")
        rate = peak
        for iteration in range(num_iters):
            for link in links if iteration == 0 else links_by_iter + links_by_epoch:
                rate = link.move(iteration, rate)
            self._rates.append(rate)

    def lr(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0; after the last it stays."""
        return self._rates[min(iteration, self.num_iters - 1)]

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint says of it."""
        steps = [step.model_dump() for step in self.steps]
        return {
            "chain": steps,
            "peak": self.peak,
            "num_iters": self.num_iters,
            "iters_per_epoch": self.iters_per_epoch,
        }


class _Link:
    """One schedule, its beginning, end and period counted in its own moves."""

    def __init__(self, step: ScheduleStep, peak: float, num_iters: int, iters_per_epoch: int) -> None:
        self.step = step
        self.peak = peak
        self.every = iters_per_epoch if step.each_epoch else 1
        scale = iters_per_epoch if step.unit == "epochs" and not step.each_epoch else 1
        last = -(-num_iters // self.every)
        self.begin = int(step.begin * scale + 1e-6)
        self.end = last if step.end is None else int(step.end * scale + 1e-6)
        self.period = float(self.end - self.begin) if step.period is None else step.period * scale

    def move(self, iteration: int, rate: float) -> float:
        """Return the learning rate of an iteration, made from `rate`, that of the one before."""
        moves, rest = divmod(iteration, self.every)
        if rest or moves < self.begin or moves > self.end:
            return rate
        step, total = moves - self.begin, self.end - self.begin - 1
        if moves == self.end:
            # a warm-up of a single iteration has no second one in which it could rise
            return rate * self.step.end_factor / self.step.start_factor if self._is_flash(total) else rate
        match self.step.name:
            case "linear":
                return rate * self._linear(step, total)
            case "constant":
                return rate * self._constant(step, total)
        return self._cosine(step, rate)

    def _is_flash(self, total: int) -> bool:
        return self.step.name == "linear" and total == 0

    def _linear(self, step: int, total: int) -> float:
        start, rise = self.step.start_factor, self.step.end_factor - self.step.start_factor
        return start if step == 0 else 1 + rise / (total * start + (step - 1) * rise)

    def _constant(self, step: int, total: int) -> float:
        if step == 0:
            return self.step.start_factor
        return 1 / self.step.start_factor if step == total else 1.0

    def _cosine(self, step: int, rate: float) -> float:
        floor, period = self.step.min_lr, self.period
        if step == 0:
            return rate
        if (step - 1 - period) % (2 * period) == 0:  # at the lowest point nothing is left to be multiplied
            return rate + (self.peak - floor) * (1 - math.cos(math.pi / period)) / 2
        before, now = (1 + math.cos(math.pi * at / period) for at in (step - 1, step))
        return now / before * (rate - floor) + floor
