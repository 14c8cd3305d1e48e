"""What happened in the last iterations: kept on the device until someone asks, then read in one go."""

import importlib.util
import math
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xtuner.engine.step import Micro
from xtuner.errors import UserError


@dataclass
class Entry:
    """One iteration. `sums` holds "total", "weight", the objective's metrics, and "norm" where a step was made."""

    iteration: int
    rows: tuple[int, ...]
    tokens: int
    seconds: float
    data_seconds: float
    sums: dict[str, Tensor | float]


class NotFinite(UserError):
    """The loss or the gradient became nan or inf; `iteration` (counted from 0) and `rows` say where."""

    def __init__(self, what: str, iteration: int, rows: tuple[int, ...]) -> None:
        super().__init__(what)
        self.iteration = iteration
        self.rows = rows


class Metrics:
    """The last iterations, at least as many as one log line and one optimiser step cover.

    Numbers are read from the device only by `read`, so that the host never waits in between.
    """

    def __init__(self, device: torch.device, window: int, keep: int, *, check_norm: bool = True) -> None:
        self.device = device
        self.window = window
        self.check_norm = check_norm
        self.entries: deque[Entry] = deque(maxlen=window + keep)
        self.pending: list[Entry] = []
        self.data_seconds = 0.0
        self.clock = time.perf_counter()

    def restart_clock(self) -> None:
        """Do not count what happened since the last iteration (a checkpoint, a probe) as training time."""
        self.clock = time.perf_counter()

    def add(self, micro: Micro) -> None:
        """Take note of an iteration that is over."""
        now = time.perf_counter()
        sums: dict[str, Tensor | float] = {
            "total": micro.loss.total,
            "weight": micro.loss.weight,
            **micro.loss.metrics,
        }
        if micro.norm is not None:
            sums["norm"] = micro.norm
        tokens = micro.batch.input_ids.numel()
        entry = Entry(micro.iteration, micro.batch.rows, tokens, now - self.clock, self.data_seconds, sums)
        self.clock, self.data_seconds = now, 0.0
        self.entries.append(entry)
        self.pending.append(entry)
        if self.device.type == "cpu" or len(self.pending) == self.window:
            self.read()

    def read(self) -> None:
        """Bring all numbers to the host (one transfer) and check them.

        Raises:
            NotFinite: a loss, or the gradient of a step, is nan or inf; names the first iteration.
        """
        tensors = [value for entry in self.pending for value in entry.sums.values()]
        if not tensors:
            return
        values = iter(torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in tensors]).tolist())
        pending, self.pending = self.pending, []
        for entry in pending:
            entry.sums = {name: next(values) for name in entry.sums}
        for entry in pending:
            for name in ("total", "norm") if self.check_norm else ("total",):
                if not math.isfinite(entry.sums.get(name, 0.0)):
                    what = "loss" if name == "total" else "gradient"
                    raise NotFinite(
                        f"The {what} became {entry.sums[name]} at iteration {entry.iteration + 1}.",
                        entry.iteration,
                        entry.rows,
                    )

    def scalars(self) -> dict[str, float]:
        """Average over the last `window` iterations: times per iteration (s), metrics per target, the last norm."""
        self.read()
        last = list(self.entries)[-self.window :]
        weight = max(sum(_host(entry, "weight") for entry in last), 1.0)
        names = dict.fromkeys(name for entry in last for name in entry.sums if name not in ("weight", "norm"))
        found: dict[str, float] = {
            "data_time": sum(entry.data_seconds for entry in last) / len(last),
            "time": sum(entry.seconds for entry in last) / len(last),
            "memory": peak_memory(self.device),
        }
        for name in names:
            key = "loss" if name == "total" else name
            found[key] = sum(_host(entry, name) for entry in last) / weight
        norms = [_host(entry, "norm") for entry in last if "norm" in entry.sums]
        if norms:
            found["grad_norm"] = norms[-1]
        return found

    def tokens_per_second(self) -> float:
        """Tokens of the last `window` iterations over their time."""
        last = list(self.entries)[-self.window :]
        return sum(entry.tokens for entry in last) / max(sum(entry.seconds for entry in last), 1e-9)

    def state(self, before: int) -> list[dict[str, Any]]:
        """Return the entries of iterations below `before` as plain data."""
        self.read()
        return [
            {**vars(entry), "rows": list(entry.rows), "sums": dict(entry.sums)}
            for entry in self.entries
            if entry.iteration < before
        ]

    def load_state(self, state: list[dict[str, Any]]) -> None:
        """Go on from what `state` returned."""
        for item in state:
            self.entries.append(Entry(**{**item, "rows": tuple(item["rows"])}))


def peak_memory(device: torch.device) -> int:
    """Return the most memory this process held, in MiB: on the card, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    if importlib.util.find_spec("resource") is None:  # Windows
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def _host(entry: Entry, name: str) -> float:
    value = entry.sums.get(name, 0.0)
    assert not isinstance(value, Tensor), "read() comes first"
    return value
