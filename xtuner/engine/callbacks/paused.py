"""Looking at a model in the middle of training without disturbing it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def paused(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every module as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
