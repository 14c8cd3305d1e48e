"""Which optimiser steps are left out: those whose loss or gradient is far beyond what it was lately.

The answer hangs on the steps before alone, and what it hangs on is in the checkpoint: a resumed run leaves out the
same steps.
"""

import math
import statistics
from collections import deque
from typing import Any

HISTORY = 64
"""Steps that are remembered."""
LEAST = 16
"""Steps before which nothing but nan and inf is left out."""
TIMES = 3.0
DEVIATIONS = 10.0
"""A spike is beyond both: so many times the median, and so many deviations above it."""
IN_A_ROW = 5
"""Steps left out one after another that end the run: then it is not the data."""
SIGMA = 1.4826
"""Standard deviations in a median of absolute deviations, of normal numbers."""


class SpikeGuard:
    """Remembers loss and gradient norm of the last steps that were made, and judges the next one by them."""

    def __init__(self) -> None:
        self.kept: dict[str, deque[float]] = {"loss": deque(maxlen=HISTORY), "gradient norm": deque(maxlen=HISTORY)}
        self.in_a_row = 0
        self.skipped = 0

    def judge(self, loss: float, norm: float | None) -> str | None:
        """Return why a step is to be left out, or None; takes note of it. `norm` is that of the whole gradient."""
        values = {"loss": loss, **({} if norm is None else {"gradient norm": norm})}
        reasons = [reason for name, value in values.items() if (reason := _strange(name, value, self.kept[name]))]
        if reasons:
            self.in_a_row += 1
            self.skipped += 1
            return " and ".join(reasons)
        self.in_a_row = 0
        for name, value in values.items():
            self.kept[name].append(value)
        return None

    def state(self) -> dict[str, Any]:
        """Return what a resume needs, as plain data."""
        kept = {name: list(values) for name, values in self.kept.items()}
        return {"kept": kept, "in_a_row": self.in_a_row, "skipped": self.skipped}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        for name, values in state["kept"].items():
            self.kept[name].extend(values)
        self.in_a_row, self.skipped = state["in_a_row"], state["skipped"]


def _strange(name: str, value: float, before: deque[float]) -> str | None:
    """Say what is strange about a value: the median and the deviations from it are hardly moved by spikes."""
    if not math.isfinite(value):
        return f"the {name} is {value}"
    if len(before) < LEAST:
        return None
    median = statistics.median(before)
    deviation = SIGMA * statistics.median(abs(each - median) for each in before)
    if value <= max(TIMES * median, median + DEVIATIONS * deviation):
        return None
    return f"the {name} is {value:.3g} (lately {median:.3g})"
