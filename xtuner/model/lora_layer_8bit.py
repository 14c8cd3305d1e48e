"""The LoRA layer over an 8-bit weight of bitsandbytes (LLM.int8())."""

from typing import Any

import torch
from peft.tuners.lora.bnb import Linear8bitLt as PeftLinear8bit
from torch import Tensor

from xtuner.model.lora_layer import Adapted, apply_adapter, compute_dtype, describe
from xtuner.model.shared_input import SharedInput
from xtuner.ops.int8 import Int8Weight


class LoraLinear8bit(PeftLinear8bit):
    """An INT8 linear layer with an adapter."""

    shared_input: SharedInput | None = None
    """The layers that read the same input, if there are others."""

    def __init__(self, target: Any, *args: Any, **options: Any) -> None:
        super().__init__(target, *args, **options)
        if target.weight.CB is not None:  # its first call would do that, in the middle of what may be compiled
            target.init_8bit_state()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., I) -> (..., O). Without gradients bitsandbytes multiplies in its own ways, which PEFT's pass takes."""
        ours = torch.is_grad_enabled() and not args and not kwargs
        output = apply_adapter(self, x) if ours else None
        return super().forward(x, *args, **kwargs) if output is None else output.to(x.dtype)

    def adapted(self, x: Tensor) -> Adapted | None:
        """Return what `lora_linear` needs to know, or None if the case is another."""
        base: Any = self.get_base_layer()
        state = base.state
        return describe(self, x, Int8Weight(state.CB, state.SCB, state.threshold), compute_dtype(x, x.dtype))
