"""The trained weights of a language model's checkpoint: by their names in the model, and cast without losing them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from xtuner.checkpoint.state import load_weights
from xtuner.checkpoint.weights import LazyWeights
from xtuner.errors import UserError

LATER = ("projector.", "visual_encoder.", "v_head.", "model.vision_model.", "model.mlp1.")
"""Beginnings of names in checkpoints of other kinds of models than language models."""


def read_trained(pth: Path) -> Mapping[str, Tensor]:
    """Read the trained weights of a checkpoint (`load_weights`), without the `llm.` of 0.1.x; take each once.

    Raises:
        UserError: no checkpoint, or one of a kind that is not a language model's.
    """
    weights = load_weights(pth)
    strange = sorted(name for name in weights if name.startswith(LATER))
    if strange:
        raise UserError(
            f"{pth} holds {strange[0]}: checkpoints of vision and reward models cannot be converted yet.",
            "This version converts language models.",
        )
    return LazyWeights({name.removeprefix("llm."): partial(weights.__getitem__, name) for name in weights})


def narrow(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a weight, and refuse to lose it.

    Raises:
        UserError: values that are no numbers, or too large for `dtype`.
    """
    cast = tensor.to(dtype)
    if bool(torch.isfinite(cast).all()):
        return cast
    if bool(torch.isfinite(tensor).all()):
        raise UserError(
            f"{name} has values that {str(dtype).removeprefix('torch.')} cannot hold.",
            "Add --dtype bfloat16 or --fp32.",
        )
    raise UserError(f"{name} has values that are no numbers: the training diverged.", "Use an earlier checkpoint.")
