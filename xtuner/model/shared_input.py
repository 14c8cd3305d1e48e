"""Adapted layers that read the same input are computed together (query, key and value; gate and up).

Which ones do is not guessed from names: the model runs on a few tokens and is watched. What the first layer computes
for the others waits in the object that they share, until the last of them has asked for it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtuner.ops.lora_linear import lora_linear


class SharedInput:
    """Layers that a model calls with the same tensor, one right after another."""

    def __init__(self, layers: list[Any]) -> None:
        """`layers`: those of `lora_layer` and `lora_layer_4bit`, in the order in which they are called."""
        self.layers = layers
        self.source: tuple[Tensor, bool] | None = None
        """What `outputs` were made of, and whether with gradients."""
        self.outputs: list[Tensor] = []

    def output(self, layer: Any, x: Tensor) -> Tensor | None:
        """Return what `layer` makes of `x`: the first to be asked computes for all, the last lets go of it.

        None where they cannot be computed together (with dropout each draws random numbers of its own).
        """
        graded = torch.is_grad_enabled()
        if self.source is None or self.source[0] is not x or self.source[1] != graded:
            found = [each.adapted(x) for each in self.layers]
            if any(one is None or one.dropout > 0 or one.dtype != found[0].dtype for one in found):
                return None
            layers = [one.layer for one in found]
            self.outputs = list(lora_linear(x, layers, dropout=0.0, dtype=found[0].dtype))
            self.source = (x, graded)
        place = next(place for place, each in enumerate(self.layers) if each is layer)
        output = self.outputs[place]
        if place == len(self.layers) - 1:
            self.source, self.outputs = None, []
        return output


def share_inputs(model: nn.Module, base: PreTrainedModel, dtype: torch.dtype) -> None:
    """Find the layers of ours in `model` that read the same input, and let them share what they do with it.

    `base` is the transformers model inside, whose frozen weights are `dtype`; it runs once, on three tokens, with
    autocast as in training: weights that are trained whole are fp32 beside others of 16 bits.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(type(module), "shared_input")]
    calls: list[tuple[Any, Tensor]] = []  # holds the tensors, so that none takes the place of another

    def watch(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        calls.append((layer, arguments[0]))

    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    was_training = model.training
    model.eval()
    mixed = torch.autocast(base.device.type, dtype, enabled=dtype != torch.float32)
    try:
        with torch.no_grad(), mixed, torch.compiler.set_stance("force_eager"):
            base(input_ids=torch.tensor([[3, 4, 5]], device=base.device), use_cache=False)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    for together in _neighbours(calls):
        if len({type(layer) for layer in together}) == 1 and len(set(map(id, together))) == len(together) > 1:
            shared = SharedInput(together)
            for layer in together:
                layer.shared_input = shared


def compute_apart(model: nn.Module) -> None:
    """Let every layer compute for itself, where weights are at hand only while their own layer is called (ZeRO-3)."""
    for module in model.modules():
        if hasattr(type(module), "shared_input"):
            module.shared_input = None  # type: ignore[assignment]


def _neighbours(calls: list[tuple[Any, Tensor]]) -> list[list[Any]]:
    """Put layers together that were called one right after another with the same tensor."""
    found: list[list[Any]] = []
    previous: Tensor | None = None
    for layer, given in calls:
        if given is previous:
            found[-1].append(layer)
        else:
            found.append([layer])
        previous = given
    return found
