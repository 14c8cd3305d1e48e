"""What the laws share: a measurement, and a run that is built to be measured and thrown away."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xtuner.checkpoint.run_record import RunRecord
from xtuner.config.choice import Choice
from xtuner.config.spec import CheckpointSpec, RunSpec
from xtuner.engine.build import build_run
from xtuner.engine.precision import choose_precision
from xtuner.engine.run import Run
from xtuner.engine.strategy.world import World
from xtuner.engine.workdir import WorkDir
from xtuner.log import LOGGER, LogFile


@dataclass(frozen=True)
class Measured:
    """One line of the table: how far two ways that should give the same are apart."""

    law: str
    what: str
    difference: float
    limit: float
    """What rounding in the run's number format explains; 0: equal bit for bit."""

    @property
    def holds(self) -> bool:
        """Whether the law was kept."""
        return self.difference <= self.limit  # False for NaN


def bare_spec(spec: RunSpec) -> RunSpec:
    """Return what a law needs of a run: model, data and step; supervised fine-tuning on one process."""
    data = spec.data.model_copy(update={"validation": None})
    model = spec.model.model_copy(update={"weights": None, "recompute": "none", "compile": False})
    return spec.model_copy(
        update={
            "data": data,
            "model": model,
            "objective": Choice(name="sft"),
            "strategy": Choice(name="single"),
            "callbacks": [],
            "probe": None,
            "resume": None,
            "checkpoint": CheckpointSpec(every=None, last=False),
        }
    )


def with_model(spec: RunSpec, **changes: object) -> RunSpec:
    """Return the spec with other settings of the model."""
    return spec.model_copy(update={"model": spec.model.model_copy(update=changes)})


def with_loop(spec: RunSpec, **changes: object) -> RunSpec:
    """Return the spec with other settings of the loop."""
    return spec.model_copy(update={"loop": spec.loop.model_copy(update=changes)})


def without_dropout(spec: RunSpec, dropout: float = 0.0) -> RunSpec:
    """Return the spec with no dropout in the adapter, or with so much."""
    if spec.model.lora is None:
        return spec
    return with_model(spec, lora=spec.model.lora.model_copy(update={"dropout": dropout}))


@contextmanager
def open_run(spec: RunSpec, folder: Path) -> Iterator[Run]:
    """Build a run with its work dir in `folder`, silently but for warnings; close it afterwards."""
    screens = [handler for handler in LOGGER.handlers if not isinstance(handler, LogFile)]
    levels = [handler.level for handler in screens]
    for handler in screens:
        handler.setLevel(logging.WARNING)
    try:
        work = WorkDir(folder, "selftest.yaml", "")
        try:
            yield build_run(spec, "selftest", work, RunRecord(spec=spec.model_dump(mode="json")), World())
        finally:
            work.close()
    finally:
        for handler, level in zip(screens, levels, strict=True):
            handler.setLevel(level)


def is_exact(run: Run) -> bool:
    """Whether the run computes in fp32 on a CPU, where the same sums give the same bits."""
    return run.strategy.device.type == "cpu"


def compute_dtype(run: Run) -> torch.dtype:
    """Return the number format in which the run computes."""
    return choose_precision(run.spec, run.strategy.device).compute


def worst(found: list[float], expected: list[float]) -> float:
    """Return the largest relative difference of two lists of numbers; NaN where there is one."""
    if len(found) != len(expected):
        return math.inf
    shares = [abs(one - other) / max(abs(other), 1e-12) for one, other in zip(found, expected, strict=True)]
    return math.nan if any(math.isnan(share) for share in shares) else max(shares, default=math.inf)


def apart(found: Tensor, expected: Tensor) -> float:
    """Return the length of the difference as a share of the length of `expected`."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))
