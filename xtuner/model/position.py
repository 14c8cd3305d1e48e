"""Longer texts than a checkpoint was trained for: its rotary positions, stretched; works on config.json alone."""

import math
from collections.abc import Mapping
from typing import Any

from xtuner.checkpoint.adapter import read_base_changes
from xtuner.checkpoint.kind import is_built_in
from xtuner.config.spec import ModelSpec
from xtuner.errors import UserError

SCALED = ("internlm2", "minicpm", "deepseek")
"""Of the families of our own those whose positions follow `rope_scaling`."""
GROWING = (None, "default", "linear", "dynamic")
"""Kinds of rotary positions that can be stretched; the others were trained for the length that they state."""


def stretch_positions(config: Mapping[str, Any], num_tokens: int, path: str) -> dict[str, Any]:
    """Return what config.json must say differently so that `num_tokens` tokens fit: nothing if they do already.

    Linear interpolation (https://arxiv.org/abs/2306.15595) by a whole number, as in 0.1.x: position p counts as
    p / factor. `max_position_embeddings` stays what was trained, from which readers work out the new length.

    Raises:
        UserError: the model has no such positions.
    """
    length = config.get("max_position_embeddings")
    kind = config.get("model_type")
    written = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = written.get("rope_type", written.get("type"))
    factor = written.get("factor") or 1
    if isinstance(length, int) and num_tokens <= length * (factor if rope in ("linear", "dynamic") else 1):
        return {}
    own = is_built_in(kind) and kind not in SCALED
    layered = any(isinstance(value, Mapping) for value in written.values())
    if own or layered or rope not in GROWING or not isinstance(length, int) or config.get("alibi"):
        raise UserError(
            f"The positions of {path} ({kind}) cannot be stretched to {num_tokens} tokens.",
            "Leave max_position_embeddings out, or use a model that was trained for such lengths.",
        )
    factor = float(math.ceil(num_tokens / length))
    if "rope_parameters" in config:
        kept = {key: value for key, value in written.items() if key not in ("type", "rope_type", "factor")}
        return {"rope_parameters": {**kept, "rope_type": "linear", "factor": factor}}
    return {"rope_scaling": {"type": "linear", "factor": factor}}


def position_changes(spec: ModelSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the positions of a spec's checkpoint need: as it says, or as the adapter it names was trained with.

    `config` is config.json of the checkpoint.
    """
    if spec.max_position_embeddings is not None:
        return stretch_positions(config, spec.max_position_embeddings, spec.path)
    return read_base_changes(spec.adapter) if spec.adapter is not None else {}
