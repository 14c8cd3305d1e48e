"""What every objective offers."""

from typing import Protocol

from torch import Tensor, nn

from xtuner.dataset.batch import Batch
from xtuner.objective.loss import Loss


class Objective(Protocol):
    """Turns a model and a batch into a loss. A dataclass; its fields are its options in a config."""

    def count(self, batch: Batch) -> Tensor:
        """Return how many targets the batch has, known before the model runs."""
        ...

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss, a sum over `count(batch)` targets."""
        ...
