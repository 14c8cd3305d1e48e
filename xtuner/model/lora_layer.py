"""The LoRA layers of ours that PEFT injects: its own layers with a forward pass in one autograd function.

Whatever our function does not cover (DoRA, several adapters, merged or disabled adapters, trained biases) goes
through PEFT's forward pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from xtuner.model.fp8_linear import Fp8Linear
from xtuner.model.shared_input import SharedInput
from xtuner.ops.lora_linear import AdaptedLayer, DenseWeight, FrozenWeight, lora_linear


class LoraLinear(PeftLinear):
    """A dense or FP8 linear layer with an adapter."""

    shared_input: SharedInput | None = None
    """The layers that read the same input, if there are others."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., I) -> (..., O), in the dtype of autocast or else of the frozen weight."""
        output = None if args or kwargs else apply_adapter(self, x)
        return super().forward(x, *args, **kwargs) if output is None else output

    def adapted(self, x: Tensor) -> "Adapted | None":
        """Return what `lora_linear` needs to know, or None if the case is another."""
        base: Any = self.get_base_layer()
        if isinstance(base, Fp8Linear):
            return describe(self, x, base.frozen(), compute_dtype(x, x.dtype))
        return describe(self, x, DenseWeight(base.weight), compute_dtype(x, base.weight.dtype))


@dataclass(frozen=True)
class Adapted:
    """A layer with the one adapter that is applied to it, and how it is computed."""

    layer: AdaptedLayer
    dropout: float
    dtype: torch.dtype


def apply_adapter(layer: Any, x: Tensor) -> Tensor | None:
    """Run `lora_linear` for `layer`, and at once for those that read the same input; None: it cannot."""
    if layer.shared_input is not None:
        output: Tensor | None = layer.shared_input.output(layer, x)
        if output is not None:
            return output
    found = layer.adapted(x)
    return None if found is None else lora_linear(x, [found.layer], dropout=found.dropout, dtype=found.dtype)[0]


def describe(layer: Any, inputs: Tensor, weight: FrozenWeight, dtype: torch.dtype) -> Adapted | None:
    """Return `layer` with the one plain adapter that is to be applied, or None if the case is another."""
    base: Any = layer.get_base_layer()
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(names) != 1 or inputs.numel() == 0:
        return None
    [name] = names
    trained_base = any(parameter.requires_grad for parameter in base.parameters(recurse=False))
    if trained_base or layer.lora_variant or layer.lora_bias.get(name) or layer.lora_A[name].weight.dim() != 2:
        return None
    dropout = layer.lora_dropout[name]
    lora_a, lora_b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return Adapted(
        AdaptedLayer(weight, base.bias, lora_a, lora_b, layer.scaling[name]),
        dropout=dropout.p if isinstance(dropout, nn.Dropout) and layer.training else 0.0,
        dtype=dtype,
    )


def compute_dtype(inputs: Tensor, weight_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a product: that of autocast where it is on, else that of the weight."""
    kind = inputs.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_dtype
