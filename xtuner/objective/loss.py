"""What an objective returns: a sum and what it is a sum over."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """`total` is a SUM over `weight` targets (scalars), never a mean: means do not add up over micro-batches.

    `metrics` are further sums over the same weight, detached.
    """

    total: Tensor
    weight: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
