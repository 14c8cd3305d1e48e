"""One optimiser step, in plain sight: count the targets, add up the gradients, move the weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from xtuner.dataset.batch import Batch
from xtuner.engine.strategy.base import Strategy
from xtuner.objective.loss import Loss
from xtuner.objective.protocol import Objective
from xtuner.ops.linear_cross_entropy import find_learned
from xtuner.ops.packing import Packing


@dataclass(frozen=True)
class Micro:
    """What one iteration did: its loss (detached, on the device), and on the last of a step the gradient norm."""

    iteration: int
    """Counted from 0."""
    batch: Batch
    loss: Loss
    stepped: bool
    norm: Tensor | None
    skipped: bool = False
    """The step was left out: the weights are as before."""


def train_step(
    strategy: Strategy,
    objective: Objective,
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    first: int,
    seed: int,
    lr: float,
    max_norm: float | None,
    after: Callable[[Micro], None],
    judge: Callable[[float, float], bool] | None = None,
) -> None:
    """Do the iterations `first`, `first + 1`, ... (one per batch, on the host), and one optimiser step at the end.

    The gradient is that of the sum of all losses over the number of all targets, on all ranks, however they are cut
    into batches. `after` is called when an iteration is over: with the weights unchanged for all but the last.
    `judge` is given the loss per target and the gradient norm of the whole step and may refuse it.
    """
    targets = strategy.world.total(sum(int(objective.count(batch)) for batch in batches))
    scale = strategy.world.size / max(targets, 1)  # gradients are averaged over ranks
    losses: list[Tensor] = []
    refused: list[Tensor] = []

    def accept(norm: Tensor) -> bool:
        assert judge is not None
        [total] = strategy.world.sum([float(torch.stack(losses).sum())])
        if not judge(total / max(targets, 1), float(norm)):
            refused.append(norm)
        return not refused

    strategy.set_lr(lr)
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        seed_iteration(strategy.device, seed, first + index, strategy.world.rank)
        with strategy.sync(last):
            loss = strategy.loss(objective, model, to_device(batch, strategy.device))
            strategy.backward(loss.total * scale)
        losses.append(loss.total.detach())
        norm = strategy.step(max_norm, accept if judge is not None else None) if last else None
        after(Micro(first + index, batch, detach(loss), last, norm, bool(refused)))


def seed_iteration(device: torch.device, seed: int, iteration: int, rank: int) -> None:
    """Make the random numbers (dropout) of an iteration a function of the run's seed, the iteration and the rank.

    So a resumed run draws what it would have drawn, and whatever happens between iterations disturbs nothing.
    """
    value = (seed * 1_000_003 + iteration) * 4_099 + rank
    torch.default_generator.manual_seed(value % 2**63)
    if device.type == "cuda":
        torch.cuda.manual_seed(value % 2**63)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch; to a card from pinned memory, so that the host does not wait for the work queued there."""
    if device.type == "cpu":
        return batch
    pinned = replace(
        batch,
        input_ids=batch.input_ids.pin_memory(),
        labels=batch.labels.pin_memory(),
        positions=batch.positions.pin_memory(),
        packing=Packing(batch.packing.cu_seqlens.pin_memory(), batch.packing.max_seqlen),
        learned=find_learned(batch.labels[0]).pin_memory(),
    )
    return pinned.to(device)


def detach(loss: Loss) -> Loss:
    """Let go of the graph behind a loss."""
    return Loss(
        loss.total.detach(), loss.weight.detach(), {name: value.detach() for name, value in loss.metrics.items()}
    )
