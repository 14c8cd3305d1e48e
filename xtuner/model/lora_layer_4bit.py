"""The LoRA layer over a 4-bit weight of bitsandbytes, which is dequantised when it is needed and never kept."""

from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor

from xtuner.model.lora_layer import apply_adapter, compute_dtype, sole_adapter
from xtuner.ops.lora_linear import DenseWeight
from xtuner.ops.nf4 import Weight4bit
from xtuner.ops.packed4bit import Packed4bit


class LoraLinear4bit(PeftLinear4bit):
    """A 4-bit linear layer with an adapter."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., I) -> (..., O). Without gradients, bitsandbytes' own kernels are faster for the few rows at a time
        that generation asks for, so PEFT's forward pass is taken."""
        base: Any = self.get_base_layer()
        adapter = sole_adapter(self, x, base, args, kwargs) if torch.is_grad_enabled() else None
        state = base.weight.quant_state
        if adapter is None or state is None or getattr(state, "packing_format_for_cpu", False):
            return super().forward(x, *args, **kwargs)
        dtype = compute_dtype(x, base.compute_dtype or x.dtype)
        weight = Weight4bit(Packed4bit.of(base.weight, state)) if x.is_cuda else HostWeight4bit(base.weight.data, state)
        return apply_adapter(self, adapter, x, weight, base.bias, dtype).to(x.dtype)


@dataclass(frozen=True)
class HostWeight4bit:
    """A 4-bit weight on a CPU, where the dequantisation of bitsandbytes is the fastest there is."""

    packed: Tensor
    state: Any

    def multiply(self, rows: Tensor) -> Tensor:
        """x W^T."""
        return DenseWeight(dequantize_4bit(self.packed, self.state)).multiply(rows)

    def pull_back(self, grads: Tensor) -> Tensor:
        """g W."""
        return DenseWeight(dequantize_4bit(self.packed, self.state)).pull_back(grads)

    def linear(self, rows: Tensor) -> Tensor:
        """x W^T with a gradient; the weight is kept in full for it."""
        return self.multiply(rows)
