"""Decoder layers in groups, of which the backward pass finds the input of the first alone.

Going backward through a group, its layers are run once more for their inputs, and then each for what its own backward
pass needs (https://arxiv.org/abs/1604.06174, section 4.2): a quarter of the inputs for not quite one more forward
pass. A model calls its layers one after another, so all of a group but the last do nothing at first but note how they
were called.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from xtuner.errors import UserError

GROUP = 4
"""Layers of a group. Of 32 layers the inputs of 8 remain, and those of one group while it runs backward: 12 together,
where groups of two would have 18; groups of eight have as many, but more of them on the card."""

FIX = "Set model.recompute=layers"

Call = Callable[[Tensor], Any]
"""A layer with all its arguments but the first."""


class Group:
    """What the layers of a group tell one another within a forward pass."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.noted: list[Call] = []
        self.given: Tensor | None = None

    def take(self, place: int, call: Call, hidden: Tensor) -> Tensor:
        """Note the call of the layer at `place`; the last one runs all. Returns what goes to the next layer.

        Raises:
            UserError: the model changes what goes from one layer to the next.
        """
        follows = hidden is self.given
        if place == 0 and not follows:  # a new pass; the last one may have been cut off
            self.noted = []
        elif place != len(self.noted) or not follows:
            raise UserError("This model does more between its layers than pass on what they give.", FIX)
        self.noted.append(call)
        if place < self.size - 1:
            self.given = hidden
            return hidden
        calls, self.noted, self.given = self.noted, [], None
        result: Tensor = checkpoint(_run_all, calls, hidden, use_reentrant=False)
        return result


class LayerOfGroup(nn.Module):
    """Takes the place of a layer under the names of its weights: both have the same children."""

    layer: GradientCheckpointingLayer

    def __init__(self, layer: GradientCheckpointingLayer, group: Group, place: int) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = layer._modules, layer._parameters, layer._buffers
        self.__dict__["layer"] = layer  # not a child, which would rename the weights
        self.group, self.place = group, place

    def __getattr__(self, name: str) -> Any:
        """What models ask their layers for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.layer, name)

    def train(self, mode: bool = True) -> "LayerOfGroup":
        """The layer behind it too."""
        self.layer.train(mode)
        return super().train(mode)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(B, T, D) -> (B, T, D), of the whole group in its last layer."""
        if not torch.is_grad_enabled():
            return self.layer(hidden, *args, **kwargs)
        return self.group.take(self.place, partial(_call, self.layer, args, kwargs), hidden)


def group_layers(decoder: nn.Module) -> None:
    """Put the layers of `decoder`, which may be compiled, into groups of `GROUP`; the last may be smaller."""
    stacks: dict[str, list[tuple[str, GradientCheckpointingLayer]]] = {}
    for name, module in decoder.named_modules():
        if isinstance(module, GradientCheckpointingLayer):
            stacks.setdefault(name.rpartition(".")[0], []).append((name, module))
    groups = []
    for stack in stacks.values():
        for first in range(0, len(stack), GROUP):
            members = stack[first : first + GROUP]
            groups.append(Group(len(members)))
            for place, (name, layer) in enumerate(members):
                decoder.set_submodule(name, LayerOfGroup(layer, groups[-1], place))

    def check(module: nn.Module, arguments: Any, output: Any) -> None:
        if torch.is_grad_enabled() and any(group.noted for group in groups):
            raise UserError("This model does not call all of its layers.", FIX)

    decoder.register_forward_hook(check)


def _run_all(calls: list[Call], hidden: Tensor) -> Tensor:
    for call in calls:
        hidden = checkpoint(call, hidden, use_reentrant=False)
    return hidden


def _call(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> Tensor:
    """Run a layer.

    Raises:
        UserError: it gives more than what goes to the next one.
    """
    output = layer(hidden, *args, **kwargs)
    if not isinstance(output, Tensor):
        raise UserError("The layers of this model give more than what goes to the next one.", FIX)
    return output
