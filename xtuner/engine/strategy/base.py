"""What the loop asks of a way to run: the only thing it knows about devices, ranks and wrappers."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xtuner.dataset.batch import Batch
from xtuner.engine.strategy.world import World
from xtuner.objective.loss import Loss
from xtuner.objective.protocol import Objective

T = TypeVar("T")


Accept = Callable[[Tensor], bool]
"""Whether a step is to be made, by the norm of its gradient: the same answer on every rank."""


class Strategy(Protocol):
    """A way to run. Everything distributed happens behind these methods; the loop has no `if` about it.

    All ranks call all methods at the same places.
    """

    device: torch.device
    world: World
    """The processes, and what they agree on."""
    reader: int
    """Which rows this rank reads: those of reader number so and so ..."""
    readers: int
    """... of so many; ranks that share a sequence read the same rows."""
    all_write: bool
    """Whether every rank writes a part of a checkpoint, so that all must have one work dir."""
    keeps_float32: bool
    """Whether trained weights and their moments are float32 in checkpoints, whatever format the model was loaded in."""

    def loading_device(self, quantised: bool) -> torch.device:
        """Return where the checkpoint is to be loaded."""
        ...

    def place(self, model: nn.Module, optimiser: Callable[[nn.Module], Optimizer]) -> nn.Module:
        """Take the loaded model, wrap or shard it, make its optimiser; returns the module to call."""
        ...

    def cut(self, batch: Batch) -> Batch:
        """Return this rank's part of a batch that ranks share, or the batch."""
        ...

    def loss(self, objective: Objective, model: nn.Module, batch: Batch) -> Loss:
        """Compute the loss of a batch on the device, in the run's number format."""
        ...

    def within(self, function: Callable[[], T]) -> T:
        """Call what calls the model, in the run's number format and with all weights in place."""
        ...

    def sync(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of an iteration: gradients cross ranks only where `last`."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar."""
        ...

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the coming step; before its first backward pass, where weights may move already."""
        ...

    def step(self, max_norm: float | None, accept: Accept | None = None) -> Tensor | None:
        """Clip, move the weights, forget the gradients; returns the norm before clipping, on the device.

        With `accept` the norm is measured in any case, and the weights stay as they are if it says no to it.
        """
        ...

    def forget(self) -> None:
        """Drop gradients of iterations that no step will follow."""
        ...

    def save(self, path: Path, state: Mapping[str, Any], *, optimizer: bool) -> None:
        """Write a checkpoint: `state`, the trained weights and, if asked for, what a resume needs.

        Raises:
            UserError: a weight is not finite, or the disk is full; earlier checkpoints are intact.
        """
        ...

    def read(self, path: Path) -> dict[str, Any]:
        """Return what `save` was given as `state`, without touching the model."""
        ...

    def load(self, path: Path) -> None:
        """Put weights and optimiser back as `save` found them."""
        ...

    def gather(self) -> dict[str, Tensor]:
        """Return the trained weights, whole, on the CPU, under the names of `.pth` files; on rank 0, else nothing."""
        ...
