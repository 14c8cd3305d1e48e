"""Law 1: the losses of a training do not depend on how its steps are cut into batches, packed or recomputed."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from xtuner.config.spec import RunSpec
from xtuner.dataset.batch import Batch
from xtuner.dataset.collate import collate
from xtuner.dataset.store import Pack
from xtuner.engine.run import Run
from xtuner.engine.selftest.measure import (
    Measured,
    compute_dtype,
    open_run,
    with_loop,
    with_model,
    without_dropout,
    worst,
)
from xtuner.engine.step import Micro, train_step

LAW = "one trajectory"
STEPS = 20
PACKS = 4
"""Packs of a step."""
EXACT = 1e-6
"""Relative difference of a loss that is always allowed."""
AGAIN = 5.0
"""How far above the difference that rounding errors in the weights make a difference may be. They are measured, since
it is the model that blows them up or not: two to fifty times EXACT in fp32 on the built-in one."""

Cut = Callable[[Sequence[Pack]], list[Batch]]


def together(packs: Sequence[Pack]) -> list[Batch]:
    """All packs of a step in one batch."""
    return [collate(packs, range(len(packs)))]


def in_pairs(packs: Sequence[Pack]) -> list[Batch]:
    """Two packs at a time."""
    return [collate(packs[start : start + 2], (start,)) for start in range(0, len(packs), 2)]


def one_by_one(packs: Sequence[Pack]) -> list[Batch]:
    """One pack at a time."""
    return [collate([pack], (index,)) for index, pack in enumerate(packs)]


def unpacked(packs: Sequence[Pack]) -> list[Batch]:
    """One sample at a time."""
    return [collate([sample], (index,)) for index, pack in enumerate(packs) for sample in samples_of(pack)]


def samples_of(pack: Pack) -> list[Pack]:
    """Return the samples of a pack, each as a pack of its own."""
    ends = [sum(pack.lengths[: index + 1]) for index in range(len(pack.lengths))]
    windows = [slice(end - length, end) for end, length in zip(ends, pack.lengths, strict=True)]
    return [Pack(pack.input_ids[part], pack.labels[part], [part.stop - part.start]) for part in windows]


def measure_trajectory(spec: RunSpec, folder: Path, *, steps: int = STEPS) -> Iterator[tuple[str, Measured | None]]:
    """Train `steps` steps in every way and compare the losses with those of all packs of a step in one batch.

    What rounding explains is measured on the same training with rounding errors in all weights at the start. Yields
    what is going to be measured with None, and the result of it afterwards.
    """
    form = "all weights" if spec.model.lora is None else "LoRA"
    plain = without_dropout(with_loop(spec, max_iters=steps, epochs=1, accumulate=1, batch_size=1))
    yield f"{form}, all packs of a step at once", None
    expected = losses_of(plain, folder / "together", together, steps)
    yield f"{form}, what rounding makes of it", None
    rounded = losses_of(plain, folder / "rounded", together, steps, rounded=True)
    limit = max(EXACT, AGAIN * worst(rounded, expected))
    ways: list[tuple[str, Cut, RunSpec]] = [
        ("two packs at a time", in_pairs, plain),
        ("one pack at a time", one_by_one, plain),
        ("one sample at a time", unpacked, plain),
        ("recomputing", one_by_one, with_model(plain, recompute="layers")),
    ]
    for index, (name, cut, changed) in enumerate(ways):
        yield f"{form}, {name}", None
        found = losses_of(changed, folder / str(index), cut, steps)
        yield "", Measured(LAW, f"{form}, {name}", worst(found, expected), limit)


def losses_of(spec: RunSpec, folder: Path, cut: Cut, steps: int, *, rounded: bool = False) -> list[float]:
    """Return the loss per target of each step; `rounded`: of a model whose weights have errors of that size."""
    with open_run(spec, folder) as run:
        if rounded:
            add_rounding(run.model, torch.finfo(compute_dtype(run)).eps)
        return [_step(run, cut, step) for step in range(steps)]


@torch.no_grad()
def add_rounding(model: nn.Module, eps: float) -> None:
    """Give every weight a random relative error as rounding makes it: eps / sqrt(12)."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.mul_(1 + torch.randn_like(parameter) * (eps / math.sqrt(12)))


def _step(run: Run, cut: Cut, step: int) -> float:
    packs = [run.data.train[(step * PACKS + index) % len(run.data.train)] for index in range(PACKS)]
    done: list[Micro] = []
    train_step(
        run.strategy,
        run.objective,
        run.model,
        cut(packs),
        first=step,
        seed=run.seed,
        lr=run.schedule.lr(step),
        max_norm=run.spec.optim.max_norm,
        after=done.append,
    )
    total = torch.stack([micro.loss.total.double() for micro in done]).sum()
    return float(total / torch.stack([micro.loss.weight.double() for micro in done]).sum())
