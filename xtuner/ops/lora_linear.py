"""A frozen linear layer with a low-rank branch (https://arxiv.org/abs/2106.09685) as one autograd function.

It keeps the input once, in the dtype it is computed in, and never forms a gradient for the frozen weight. The
weight is fetched when it is needed, in the forward and again in the backward pass, so a 4-bit weight is never held
in full between the two (https://arxiv.org/abs/2305.14314).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

FetchWeight = Callable[[torch.dtype], Tensor]
"""Returns the frozen weight (O, I) in the dtype asked for."""


def lora_linear(
    inputs: Tensor,
    fetch_weight: FetchWeight,
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
    output: Tensor = _LoraLinear.apply(inputs, lora_a, lora_b, bias, fetch_weight, scaling, dropout, dtype)
    return output


def reference_lora_linear(
    inputs: Tensor,
    fetch_weight: FetchWeight,
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
    bias = None if bias is None else bias.to(dtype)
    base = functional.linear(inputs, fetch_weight(dtype), bias)
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
        fetch_weight: FetchWeight,
        scaling: float,
        dropout: float,
        dtype: torch.dtype,
    ) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1]).to(dtype)
        seen, mask = torch.native_dropout(rows, dropout, True) if dropout > 0 else (rows, None)
        inner = seen @ lora_a.to(dtype).t()
        output = functional.linear(rows, fetch_weight(dtype), None if bias is None else bias.to(dtype))
        output.addmm_(inner, lora_b.to(dtype).t(), alpha=scaling)
        ctx.save_for_backward(rows, mask, inner, lora_a, lora_b)
        ctx.fetch_weight, ctx.scaling, ctx.dropout, ctx.dtype = fetch_weight, scaling, dropout, dtype
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
            grad_rows = grad_inner @ lora_a.to(ctx.dtype)
            if mask is not None:
                grad_rows.mul_(mask).mul_(keep)
            grad_rows.addmm_(grad, ctx.fetch_weight(ctx.dtype))
            grad_inputs = grad_rows.view(ctx.input_shape).to(ctx.input_dtype)
        return grad_inputs, grad_a, grad_b, None, None, None, None, None
