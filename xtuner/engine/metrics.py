"""What happened in the last iterations: kept on the device until someone asks, then read in one go."""

import importlib.util
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
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
    own: float = 0.0
    """The total of this rank alone."""
    skipped: bool = False
    """Its step was left out."""


class NotFinite(UserError):
    """The loss or the gradient became nan or inf; `iteration` (counted from 0) and `rows` say where."""

    def __init__(self, what: str, iteration: int, rows: tuple[int, ...], *, own: bool = True) -> None:
        """`own`: it happened on this rank, with these rows."""
        super().__init__(what)
        self.iteration = iteration
        self.rows = rows
        self.own = own


class Metrics:
    """The last iterations, at least as many as one log line and one optimiser step cover.

    Numbers are read from the device only by `read`, so that the host never waits in between.
    """

    def __init__(
        self,
        device: torch.device,
        window: int,
        keep: int,
        *,
        check_loss: bool = True,
        check_norm: bool = True,
        add_ranks: Callable[[Sequence[float]], list[float]] = list,
    ) -> None:
        """`check_loss` and `check_norm`: nan and inf are errors.

        `add_ranks` sums numbers over all ranks; what is logged is true of all of them.
        """
        self.device = device
        self.window = window
        self.checked = [name for name, check in (("total", check_loss), ("norm", check_norm)) if check]
        self.add_ranks = add_ranks
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
        self.data_seconds = 0.0
        self.entries.append(entry)
        self.pending.append(entry)
        if self.device.type == "cpu" or len(self.pending) == self.window:
            self.read()
            read = time.perf_counter()
            entry.seconds += read - now  # what the card still had to do for these iterations
            now = read
        self.clock = now

    def read(self) -> None:
        """Bring all numbers to the host (one transfer) and check them.

        Raises:
            NotFinite: a loss, or the gradient of a step, is nan or inf; names the first iteration.
        """
        tensors = [value for entry in self.pending for value in entry.sums.values()]
        if not tensors:
            return
        # a norm of gradients that are kept on the host is there, too
        device = next((value.device for value in tensors if isinstance(value, Tensor)), None)
        numbers = [torch.as_tensor(value, dtype=torch.float32, device=device) for value in tensors]
        values = iter(torch.stack(numbers).tolist())
        pending, self.pending = self.pending, []
        for entry in pending:
            entry.sums = {name: next(values) for name in entry.sums}
            entry.own = float(entry.sums["total"])
        added = iter(self.add_ranks([number for entry in pending for number in _of_rank(entry)]))
        for entry in pending:  # the norm is the same on all ranks
            entry.tokens = int(next(added))
            entry.sums = {name: value if name == "norm" else next(added) for name, value in entry.sums.items()}
        for entry in pending:
            for name in self.checked:
                if not math.isfinite(entry.sums.get(name, 0.0)):
                    what = "loss" if name == "total" else "gradient"
                    raise NotFinite(
                        f"The {what} became {entry.sums[name]} at iteration {entry.iteration + 1}.",
                        entry.iteration,
                        entry.rows,
                        own=name == "norm" or not math.isfinite(entry.own),
                    )

    def leave_out(self, first: int) -> None:
        """Take the losses from iteration `first` (counted from 0) on out of all averages: their step was not made."""
        for entry in self.entries:
            entry.skipped = entry.skipped or entry.iteration >= first

    def scalars(self) -> dict[str, float]:
        """Average over the last `window` iterations: times per iteration (s), metrics per target, the last norm.

        Of steps that were left out only the times count; if none was made, the last one before them speaks.
        """
        self.read()
        window = list(self.entries)[-self.window :]
        last = [entry for entry in window if _counts(entry)] or [entry for entry in self.entries if _counts(entry)][-1:]
        last = last or window
        weight = max(sum(_host(entry, "weight") for entry in last), 1.0)
        names = dict.fromkeys(name for entry in last for name in entry.sums if name not in ("weight", "norm"))
        found: dict[str, float] = {
            "data_time": sum(entry.data_seconds for entry in window) / len(window),
            "time": sum(entry.seconds for entry in window) / len(window),
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
            {**vars(entry), "rows": list(entry.rows), "sums": dict(entry.sums), "own": 0.0}
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


def _counts(entry: Entry) -> bool:
    return not entry.skipped and math.isfinite(_host(entry, "total"))


def _of_rank(entry: Entry) -> list[float]:
    return [entry.tokens, *(_host(entry, name) for name in entry.sums if name != "norm")]


def _host(entry: Entry, name: str) -> float:
    value = entry.sums.get(name, 0.0)
    assert not isinstance(value, Tensor), "read() comes first"
    return value
