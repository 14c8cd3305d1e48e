"""The weights that training changes, under the names that 0.1.x gave them in its `.pth` files."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from xtuner.errors import UserError

PREFIX = "llm."
"""The model was the attribute `llm` of a 0.1.x module."""
ADAPTER = "default"


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return every trained weight (detached, not copied), for example
    `llm.base_model.model.model.layers.0.attention.wqkv.lora_A.default.weight`, or `llm.model.norm.weight` without
    an adapter."""
    return {PREFIX + name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def load_trainable(model: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> None:
    """Copy weights into the model, one at a time. Names may have or lack `llm.`, and adapter names may have the short
    form of PEFT's files (`lora_A.weight`).

    Raises:
        UserError: a name or shape that the model does not have; with `strict`, also a trained weight that is absent.
            After a wrong shape the model is of no use.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, str] = {}
    unknown: list[str] = []
    for name in state:
        known = _find(name.removeprefix(PREFIX), own)
        if known is None:
            unknown.append(name)
        else:
            found[known] = name
    if unknown:
        raise UserError(
            f"The weights do not fit the model: it has no {_some(unknown)}.",
            "Use the base model and the adapter settings that they were trained with.",
        )
    given = {id(own[name]) for name in found}
    missing = [name for name, value in own.items() if value.requires_grad and id(value) not in given]
    if strict and missing:
        raise UserError(
            f"The weights are incomplete: there is no {_some(missing)}.",
            "Use the base model and the adapter settings that they were trained with.",
        )
    shapes: list[str] = []
    for name, stored in found.items():
        value = state[stored]  # may be put together only now
        if value.shape == own[name].shape:
            own[name].copy_(value)
        else:
            shapes.append(f"{name} is {tuple(value.shape)} instead of {tuple(own[name].shape)}")
    if shapes:
        raise UserError(
            f"The weights do not fit the model: {_some(shapes)}.",
            "Use the base model and the adapter settings (such as the rank) that they were trained with.",
        )


def _find(name: str, own: Mapping[str, Tensor]) -> str | None:
    """Return the parameter that a name of a file stands for."""
    head, _, last = name.rpartition(".")
    parent, _, kind = head.rpartition(".")
    candidates = [
        name,
        f"{head}.{ADAPTER}.{last}",  # lora_A.weight
        f"{name}.{ADAPTER}.weight",  # lora_magnitude_vector
        f"{head}.modules_to_save.{ADAPTER}.{last}",
        f"{head}.base_layer.{last}",  # a trained bias under an adapter
    ]
    if kind == ADAPTER:
        candidates.append(f"{parent}.{last}")
    return next((candidate for candidate in candidates if candidate in own), None)


def _some(names: Iterable[str], limit: int = 3) -> str:
    """Return the first few of many, and how many more there are."""
    names = list(names)
    rest = f" (and {len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
