"""The state that did best on data that are not trained, kept beside the other checkpoints."""

import math
import re
from collections.abc import Sequence

from xtuner.config.spec import RunSpec
from xtuner.engine.resume import read_meta, write_state
from xtuner.engine.run import Callback, Run
from xtuner.errors import UserError, did_you_mean
from xtuner.log import LOGGER

AUTO = "auto"
LESS = ("loss", "error", "perplexity", "ppl")
"""Parts of names of numbers that are better when they are smaller."""
FILE = "best_{}.pth"


class KeepBest(Callback):
    """Writes `best_<number>_iter_<N>.pth` when `checkpoint.best` is better than ever, and deletes the one before.

    Which is the best so far stands in that file alone, so a resumed run knows it, whichever checkpoint it goes on from.
    """

    def __init__(self) -> None:
        self.value = math.nan
        self.file = ""

    def before_train(self, run: Run) -> None:
        """Find the best state that the run had until here; rank 0 alone sees the work dir."""
        if not run.iteration:
            return
        world = run.strategy.world
        world.first(lambda: self._search(run))
        (self.value,) = world.sum([self.value if world.rank == 0 else 0.0])

    def _search(self, run: Run) -> None:
        for path in sorted(run.work.folder.glob(FILE.format("*"))):
            try:
                meta = read_meta(run.strategy, path)
            except UserError:
                continue  # of another program, or of 0.1.x
            best = meta.get("best")
            if not best or meta["iter"] > run.iteration or run.spec.checkpoint.best not in (AUTO, best["name"]):
                continue
            if self.is_better(run, best["name"], best["value"]):
                self.value, self.file = best["value"], path.name

    def after_validation(self, run: Run, scalars: dict[str, float]) -> None:
        """Save if it is the best state so far."""
        name = run.spec.checkpoint.best or AUTO
        if name == AUTO:
            name = next(iter(scalars))
        if name not in scalars or not self.is_better(run, name, scalars[name]):
            return
        number, unit = run.iteration, "iter"
        if run.spec.checkpoint.by_epoch:
            number, unit = -(-run.iteration // run.order.iters_per_epoch), "epoch"
        path = run.work.folder / FILE.format(f"{re.sub(r'[^0-9A-Za-z_.-]', '_', name)}_{unit}_{number}")
        best = {"name": name, "value": scalars[name]}
        write_state(run, path, {"best": best}, optimizer=run.spec.checkpoint.optimizer)
        LOGGER.info("Saved %s: the best %s so far, %.4f", path, name, scalars[name])
        before, self.value, self.file = self.file, scalars[name], path.name
        if before and before != path.name:
            run.work.remove(before)

    def is_better(self, run: Run, name: str, value: float) -> bool:
        """Whether `value` beats the best so far; nan never does."""
        if math.isnan(value) or math.isnan(self.value):
            return not math.isnan(value)
        rule = run.spec.checkpoint.best_rule or best_rule(name)
        return value < self.value if rule == "less" else value > self.value


def best_rule(name: str) -> str:
    """Return "less" or "greater": which is better of a number of that name."""
    return "less" if any(part in name.lower() for part in LESS) else "greater"


def check_best(spec: RunSpec, callbacks: Sequence[Callback]) -> None:
    """Make sure that what decides about the best state is measured.

    Raises:
        UserError: nothing is validated on, or nothing measures a number of that name.
    """
    if spec.checkpoint.best is None:
        return
    measured = [name for callback in callbacks for name in callback.measures]
    if not measured:
        raise UserError(
            f"checkpoint.best is {spec.checkpoint.best}, and there is nothing to validate on.",
            "Add data.validation=0.05 (a share of the training rows), or data.validation=FILE.",
        )
    if spec.checkpoint.best not in (AUTO, *measured):
        hint = did_you_mean(spec.checkpoint.best, measured) or f"Measured: {', '.join(measured)}."
        raise UserError(f"checkpoint.best is {spec.checkpoint.best}, and nothing measures that.", hint)
