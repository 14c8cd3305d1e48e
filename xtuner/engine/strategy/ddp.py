"""Data parallel: every rank has the whole model and other rows, and the gradients are averaged.

Torch's `DistributedDataParallel` is not used: it wants to be the module that is called, and objectives call parts of
the model. What it does (https://arxiv.org/abs/2006.15704), `bucket` does with hooks on the weights.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from xtuner.engine.strategy.base import Accept
from xtuner.engine.strategy.bucket import Buckets
from xtuner.engine.strategy.parallel import Parallel


class DDP(Parallel):
    """A `Strategy` for one device per process."""

    buckets: Buckets

    def place(self, model: nn.Module, optimiser: Callable[[nn.Module], Optimizer]) -> nn.Module:
        """As `Single`; then all ranks begin with the weights of rank 0."""
        placed = super().place(model, optimiser)
        self.ulysses.attach(placed)
        if self.world.size > 1:
            for parameter in self.trained:
                dist.broadcast(parameter.data, 0)
        self.buckets = Buckets(self.trained)
        return placed

    @contextmanager
    def sync(self, last: bool) -> Iterator[None]:
        """Gradients are sent while the last backward pass goes on."""
        if last and self.world.size > 1:
            self.buckets.open()
        yield

    def step(self, max_norm: float | None, accept: Accept | None = None) -> Tensor | None:
        """Average the gradients; then all ranks make the same step."""
        if self.world.size > 1:
            self.buckets.average(self.world.size)
        return super().step(max_norm, accept)

    def forget(self) -> None:
        """Keep the buffers."""
        self.buckets.clear()

    def save(self, path: Path, state: Mapping[str, Any], *, optimizer: bool) -> None:
        """Rank 0 writes the file of `Single`: all hold the same."""
        self.world.first(lambda: super(DDP, self).save(path, state, optimizer=optimizer))

    def gather(self) -> dict[str, Tensor]:
        """They are whole everywhere."""
        return super().gather() if self.world.rank == 0 else {}
