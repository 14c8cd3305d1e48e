"""What the loop asks of a way to run: the only thing it knows about devices, ranks and wrappers."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Strategy(Protocol):
    """A way to run. Everything distributed happens behind these methods; the loop has no `if` about it."""

    device: torch.device
    rank: int
    world: int

    def place(self, model: nn.Module, optimiser: Callable[[nn.Module], Optimizer]) -> nn.Module:
        """Take the loaded model, wrap or shard it, make its optimiser; returns the module to call."""
        ...

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the run's number format."""
        ...

    def sync(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of an iteration: gradients cross ranks only where `last`."""
        ...

    def total(self, count: int) -> int:
        """Sum a number over all ranks."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar."""
        ...

    def step(self, lr: float, max_norm: float | None) -> Tensor | None:
        """Clip, move the weights, forget the gradients; returns the norm before clipping, on the device."""
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
        """Return the trained weights, whole, on the CPU, under the names of `.pth` files."""
        ...
