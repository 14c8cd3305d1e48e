"""The LoRA layer over a 4-bit weight of bitsandbytes, which is dequantised when it is needed and never kept."""

from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor, nn

from xtuner.model.lora_layer import Adapted, apply_adapter, compute_dtype, describe
from xtuner.model.quant import has_broken_rows
from xtuner.model.shared_input import SharedInput
from xtuner.ops.lora_linear import DenseWeight, FrozenWeight
from xtuner.ops.nf4 import Weight4bit, dequantise, in_full
from xtuner.ops.packed4bit import Packed4bit


class LoraLinear4bit(PeftLinear4bit):
    """A 4-bit linear layer with an adapter."""

    shared_input: SharedInput | None = None
    """The layers that read the same input, if there are others."""
    resident: Tensor | None
    """The weight in full, where memory is to be spent on it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("resident", None, persistent=False)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., I) -> (..., O). Without gradients, bitsandbytes' own kernels are faster for the few rows at a time
        that generation asks for, so PEFT's forward pass is taken where they are right."""
        ours = torch.is_grad_enabled() or has_broken_rows(self.get_base_layer())
        output = apply_adapter(self, x) if ours and not args and not kwargs else None
        return super().forward(x, *args, **kwargs) if output is None else output.to(x.dtype)

    def adapted(self, x: Tensor) -> Adapted | None:
        """Return what `lora_linear` needs to know, or None if the case is another."""
        base: Any = self.get_base_layer()
        state = base.weight.quant_state
        if state is None or getattr(state, "packing_format_for_cpu", False):
            return None
        weight: FrozenWeight
        if self.resident is not None:
            weight = DenseWeight(self.resident)
        elif x.is_cuda:
            weight = Weight4bit(Packed4bit.of(base.weight, state))
        else:
            weight = HostWeight4bit(base.weight.data, state)
        return describe(self, x, weight, compute_dtype(x, base.compute_dtype or x.dtype))


@dataclass(frozen=True)
class HostWeight4bit:
    """A 4-bit weight on a CPU, where the dequantisation of bitsandbytes is the fastest there is, if it is right."""

    packed: Tensor
    state: Any

    def multiply(self, rows: Tensor) -> Tensor:
        """x W^T."""
        return DenseWeight(self.in_full()).multiply(rows)

    def pull_back(self, grads: Tensor) -> Tensor:
        """g W."""
        return DenseWeight(self.in_full()).pull_back(grads)

    def linear(self, rows: Tensor) -> Tensor:
        """x W^T with a gradient; the weight is kept in full for it."""
        return DenseWeight(self.in_full()).linear(rows)

    def adapted(self, rows: Tensor, inner: Tensor, factor: Tensor) -> Tensor:
        """x W^T + inner factor^T with a gradient, as `linear`."""
        return DenseWeight(self.in_full()).adapted(rows, inner, factor)

    def in_full(self) -> Tensor:
        """Return the weight (O, I) in the format that it had."""
        if self.state.shape[-1] % self.state.blocksize:
            return dequantise(Packed4bit.of(self.packed, self.state), self.state.dtype)
        full: Tensor = dequantize_4bit(self.packed, self.state)
        return full


def keep_in_full(model: nn.Module) -> None:
    """Let all adapted 4-bit layers of `model` hold their weights in full as well, dequantised once for all passes."""
    for module in model.modules():
        if isinstance(module, LoraLinear4bit):
            weight: Any = module.get_base_layer().weight
            state = weight.quant_state
            on_card = weight.is_cuda
            packed = Packed4bit.of(weight, state)
            module.resident = in_full(packed, state.dtype) if on_card else HostWeight4bit(weight.data, state).in_full()
