"""A frozen linear layer with a low-rank branch (https://arxiv.org/abs/2106.09685) as one autograd function.

It keeps the input once, in the dtype it is computed in, and never forms a gradient for the frozen weight. The
weight stays in whatever form it is stored in: its two products are asked for when they are needed, so a 4-bit weight
is never held in full between the forward and the backward pass (https://arxiv.org/abs/2305.14314).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


class FrozenWeight(Protocol):
    """A weight W (O, I) that is not trained, in any form; products come in the dtype of what is given."""

    def multiply(self, rows: Tensor) -> Tensor:
        """(N, I) -> x W^T (N, O). Autograd sees nothing of it."""
        ...

    def pull_back(self, grads: Tensor) -> Tensor:
        """The gradient of `multiply`: (N, O) -> g W (N, I)."""
        ...

    def linear(self, rows: Tensor) -> Tensor:
        """`multiply` with a gradient for `rows`, in operations that compilers can look into."""
        ...


@dataclass(frozen=True)
class DenseWeight:
    """A weight that is stored as it is."""

    weight: Tensor

    def multiply(self, rows: Tensor) -> Tensor:
        """x W^T."""
        return functional.linear(rows, self.weight.to(rows.dtype))

    def pull_back(self, grads: Tensor) -> Tensor:
        """g W."""
        return grads @ self.weight.to(grads.dtype)

    def linear(self, rows: Tensor) -> Tensor:
        """Autograd forms no gradient for a weight that wants none."""
        return self.multiply(rows)


def lora_linear(
    inputs: Tensor,
    weight: FrozenWeight,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float,
    dropout: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return x W^T + b + scaling * drop(x) A^T B^T, computed in `dtype`.

    `inputs` (..., I), `bias` (O,) frozen, `lora_a` (R, I), `lora_b` (O, R); returns (..., O) in `dtype`. `dropout` is
    the share of inputs that the low-rank branch does not see, drawn from torch's generator of the device.
    """
    if torch.compiler.is_compiling():  # a compiler fuses the sums with what follows, if it sees them
        return reference_lora_linear(
            inputs, weight, bias, lora_a, lora_b, scaling=scaling, dropout=dropout, dtype=dtype
        )
    output: Tensor = _LoraLinear.apply(inputs, lora_a, lora_b, bias, weight, scaling, dropout, dtype)
    return output


def reference_lora_linear(
    inputs: Tensor,
    weight: FrozenWeight,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float,
    dropout: float,
    dtype: torch.dtype,
) -> Tensor:
    """The same with autograd's own operations; what `lora_linear` is tested against."""
    inputs = inputs.to(dtype)
    base = weight.linear(inputs.reshape(-1, inputs.shape[-1])).view(*inputs.shape[:-1], -1)
    if bias is not None:
        base = base + bias.to(dtype)
    seen = functional.dropout(inputs, dropout)
    return base + functional.linear(functional.linear(seen, lora_a.to(dtype)), lora_b.to(dtype)) * scaling


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        bias: Tensor | None,
        weight: FrozenWeight,
        scaling: float,
        dropout: float,
        dtype: torch.dtype,
    ) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1]).to(dtype)
        seen, mask = torch.native_dropout(rows, dropout, True) if dropout > 0 else (rows, None)
        inner = seen @ lora_a.to(dtype).t()
        output = weight.multiply(rows)
        output.addmm_(inner, lora_b.to(dtype).t(), alpha=scaling)
        if bias is not None:
            output += bias.to(dtype)
        ctx.save_for_backward(rows, mask, inner, lora_a, lora_b)
        ctx.weight, ctx.scaling, ctx.dropout, ctx.dtype = weight, scaling, dropout, dtype
        ctx.input_shape, ctx.input_dtype = inputs.shape, inputs.dtype
        return output.view(*inputs.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rows, mask, inner, lora_a, lora_b = ctx.saved_tensors
        grad = grad_output.reshape(-1, grad_output.shape[-1]).to(ctx.dtype)
        keep = 1.0 / (1.0 - ctx.dropout)
        grad_inner = (grad @ lora_b.to(ctx.dtype)).mul_(ctx.scaling)
        grad_inputs = grad_a = grad_b = None
        if ctx.needs_input_grad[1]:
            seen = rows if mask is None else rows * mask * keep
            grad_a = (grad_inner.t() @ seen).to(lora_a.dtype)
        if ctx.needs_input_grad[2]:
            grad_b = (grad.t() @ inner).mul_(ctx.scaling).to(lora_b.dtype)
        if ctx.needs_input_grad[0]:
            grad_rows = ctx.weight.pull_back(grad)
            if mask is None:
                grad_rows.addmm_(grad_inner, lora_a.to(ctx.dtype))
            else:
                grad_rows.addcmul_(grad_inner @ lora_a.to(ctx.dtype), mask.to(ctx.dtype), value=keep)
            grad_inputs = grad_rows.view(ctx.input_shape).to(ctx.input_dtype)
        return grad_inputs, grad_a, grad_b, None, None, None, None, None
