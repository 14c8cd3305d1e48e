"""The trained weights of a checkpoint: read from a `.pth` file, and cast without losing them."""

from pathlib import Path

import torch
from torch import Tensor

from xtuner.checkpoint.state import load_state
from xtuner.errors import UserError

LATER = ("projector.", "visual_encoder.", "v_head.", "model.vision_model.", "model.mlp1.")
"""Beginnings of names in checkpoints of other kinds of models than language models."""
REFERENCE = "ref_llm."
"""A frozen copy that 0.1.x saved beside a fully trained DPO model; nobody needs it."""


def read_trained(pth: Path) -> dict[str, Tensor]:
    """Read the trained weights of a checkpoint, without the `llm.` of 0.1.x; tensors stay on the disk until touched.

    Raises:
        UserError: no checkpoint, or one of a kind that is not a language model's.
    """
    content = load_state(pth)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{pth} holds no state_dict of weights.", "Give a checkpoint such as iter_500.pth.")
    strange = sorted(name for name in state if name.startswith(LATER))
    if strange:
        raise UserError(
            f"{pth} holds {strange[0]}: checkpoints of vision and reward models cannot be converted yet.",
            "This version converts language models.",
        )
    if not state:
        raise UserError(f"{pth} holds no weights.", "Give a checkpoint such as iter_500.pth.")
    return {name.removeprefix("llm."): value for name, value in state.items() if not name.startswith(REFERENCE)}


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
