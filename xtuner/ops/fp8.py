"""Products with a frozen weight in 8-bit floating point, a scale for each row (https://arxiv.org/abs/2209.05433).

Activations and gradients are quantised row by row when they come, so a product runs at twice the rate of bfloat16 on
cards that know the format (compute capability 8.9 and later; Hopper for scales by row).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max


def quantise_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (N, K) in FP8 and their scales (N, 1) in fp32: `rows` is about their product. Rows of zeros stay."""
    scales = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (rows.float() / scales).clamp(-LARGEST, LARGEST).to(FORMAT), scales


@dataclass(frozen=True)
class Fp8Weight:
    """A weight (O, I) in FP8 whose rows have `scales` (O, 1) fp32: the true one is about their product.

    The backward pass needs its `transposed` (I, O) side by side in memory. Where that is not held it is made on the
    way: one pass over a byte each, small beside the product. The scales of its columns go into the gradient first.
    """

    weight: Tensor
    scales: Tensor
    transposed: Tensor | None = None

    def multiply(self, rows: Tensor) -> Tensor:
        """x W^T."""
        return _scaled_product(*quantise_rows(rows), self.weight.t(), self.scales.t(), rows.dtype)

    def pull_back(self, grads: Tensor) -> Tensor:
        """g W."""
        few, few_scales = quantise_rows(grads * self.scales.t().to(grads.dtype))
        ones = torch.ones(1, self.weight.shape[1], dtype=torch.float32, device=grads.device)
        transposed = self.weight.t().contiguous() if self.transposed is None else self.transposed
        return _scaled_product(few, few_scales, transposed.t(), ones, grads.dtype)

    def linear(self, rows: Tensor) -> Tensor:
        """x W^T with a gradient: rounding has none, so it is told."""
        output: Tensor = _Fp8Linear.apply(rows, self.weight, self.scales, self.transposed)
        return output

    def adapted(self, rows: Tensor, inner: Tensor, factor: Tensor) -> Tensor:
        """x W^T + inner factor^T; FP8 products begin with nothing, so it is added."""
        return self.linear(rows) + functional.linear(inner, factor)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, scales: Tensor, transposed: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scales, transposed)
        return Fp8Weight(weight, scales).multiply(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        return Fp8Weight(*ctx.saved_tensors).pull_back(grad_output), None, None, None


def _scaled_product(rows: Tensor, row_scales: Tensor, columns: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, K) x (K, M) in FP8 with fp32 scales (N, 1) and (1, M) -> (N, M); a CPU, which cannot, computes in fp32."""
    if rows.is_cuda:
        return torch._scaled_mm(rows, columns, row_scales, scales, out_dtype=dtype, use_fast_accum=True)
    return ((rows.float() * row_scales) @ (columns.float() * scales)).to(dtype)
