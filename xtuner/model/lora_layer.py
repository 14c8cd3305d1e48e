"""The LoRA layers of ours that PEFT injects: its own layers with a forward pass in one autograd function.

Whatever our function does not cover (DoRA, several adapters, merged or disabled adapters, trained biases) goes
through PEFT's forward pass.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from xtuner.model.fp8_linear import Fp8Linear
from xtuner.ops.lora_linear import DenseWeight, FrozenWeight, lora_linear


class LoraLinear(PeftLinear):
    """A dense or FP8 linear layer with an adapter."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., I) -> (..., O), in the dtype of autocast or else of the frozen weight."""
        base: Any = self.get_base_layer()
        adapter = sole_adapter(self, x, base, args, kwargs)
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        if isinstance(base, Fp8Linear):
            return apply_adapter(self, adapter, x, base.frozen(), base.bias, compute_dtype(x, x.dtype))
        dtype = compute_dtype(x, base.weight.dtype)
        return apply_adapter(self, adapter, x, DenseWeight(base.weight), base.bias, dtype)


def sole_adapter(
    layer: Any, inputs: Tensor, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """Return the name of the one plain adapter that is to be applied, or None if the case is another."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if args or kwargs or layer.disable_adapters or layer.merged or len(names) != 1 or inputs.numel() == 0:
        return None
    trained_base = any(parameter.requires_grad for parameter in base.parameters(recurse=False))
    special = layer.lora_variant or layer.lora_bias.get(names[0]) or layer.lora_A[names[0]].weight.dim() != 2
    return None if trained_base or special else names[0]


def apply_adapter(
    layer: Any, adapter: str, inputs: Tensor, weight: FrozenWeight, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Run `lora_linear` with the weights and settings of an adapter."""
    dropout = layer.lora_dropout[adapter]
    return lora_linear(
        inputs,
        weight,
        bias,
        layer.lora_A[adapter].weight,
        layer.lora_B[adapter].weight,
        scaling=layer.scaling[adapter],
        dropout=dropout.p if isinstance(dropout, nn.Dropout) and layer.training else 0.0,
        dtype=dtype,
    )


def compute_dtype(inputs: Tensor, weight_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a product: that of autocast where it is on, else that of the weight."""
    kind = inputs.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_dtype
