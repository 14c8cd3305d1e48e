"""What one step of AdamW does, as the numbers that its formula needs."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """What a step does to each weight (https://arxiv.org/abs/1711.05101), as the numbers that its formula needs."""

    decay: float
    """The weight is multiplied by it."""
    rate: float
    """The learning rate over the correction of the first moment."""
    root: float
    """Square root of the correction of the second moment."""
    betas: tuple[float, float]
    eps: float

    @classmethod
    def of(cls, step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> "Pace":
        """Work it out for a step, counted from 1."""
        corrections = [1 - beta**step for beta in betas]
        return cls(1 - lr * weight_decay, lr / corrections[0], math.sqrt(corrections[1]), betas, eps)
