"""The LoRA layer over a 4-bit weight of bitsandbytes, which is dequantised when it is needed and never kept."""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor

from xtuner.model.lora_layer import apply_adapter, compute_dtype, sole_adapter


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
        output = apply_adapter(
            self, adapter, x, lambda dtype: dequantize_4bit(base.weight.data, state).to(dtype), base.bias, dtype
        )
        return output.to(x.dtype)
