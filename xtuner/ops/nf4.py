"""Products with a frozen weight in 4 bits (NF4 or FP4), which is dequantised on the way."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xtuner.ops.packed4bit import Packed4bit


@dataclass(frozen=True)
class Weight4bit:
    """A 4-bit weight (O, I), which exists in full for one product at a time."""

    stored: Packed4bit

    def multiply(self, rows: Tensor) -> Tensor:
        """x W^T."""
        return self._product(rows, transposed=False)

    def pull_back(self, grads: Tensor) -> Tensor:
        """g W."""
        return self._product(grads, transposed=True)

    def linear(self, rows: Tensor) -> Tensor:
        """x W^T with a gradient."""
        return self._product(rows, transposed=False)

    def adapted(self, rows: Tensor, inner: Tensor, factor: Tensor) -> Tensor:
        """x W^T + inner factor^T, rounded once."""
        return self._product(rows, inner, factor, transposed=False)

    def _product(
        self, rows: Tensor, inner: Tensor | None = None, factor: Tensor | None = None, *, transposed: bool
    ) -> Tensor:
        w = self.stored
        sizes = [*w.shape, w.blocksize, w.scale_blocksize]
        scales = (w.scales, w.code, w.scale_code, w.scale_scales, w.scale_offset)
        return _product(rows, inner, factor, w.packed, *scales, sizes, transposed)


def dequantise(weight: Packed4bit, dtype: torch.dtype) -> Tensor:
    """Return the weight (O, I) in `dtype`, equal bit by bit to `bitsandbytes.functional.dequantize_4bit`, in plain
    operations; the twin of `triton.nf4.dequantise`."""
    scales = weight.scales
    if weight.scale_code is not None:
        assert weight.scale_scales is not None
        assert weight.scale_offset is not None
        outer = weight.scale_scales.repeat_interleave(weight.scale_blocksize)[: len(scales)]
        scales = weight.scale_code[scales.long()] * outer + weight.scale_offset
    numbers = torch.stack((weight.packed >> 4, weight.packed & 15), dim=1).view(-1)
    values = weight.code[numbers.long()] * scales.repeat_interleave(weight.blocksize)[: len(numbers)]
    rows, columns = weight.shape
    return values[: rows * columns].to(dtype).view(rows, columns)  # of an odd count the last byte holds one more


def in_full(weight: Packed4bit, dtype: torch.dtype) -> Tensor:
    """Return the weight (O, I) in `dtype`, in one kernel on a card."""
    if weight.packed.is_cuda:
        from xtuner.ops.triton.nf4 import dequantise as fused

        return fused(weight, dtype)
    return dequantise(weight, dtype)


@torch.library.custom_op("xtuner::packed_product", mutates_args=())
def _product(
    rows: Tensor,
    inner: Tensor | None,
    factor: Tensor | None,
    packed: Tensor,
    scales: Tensor,
    code: Tensor,
    scale_code: Tensor | None,
    scale_scales: Tensor | None,
    scale_offset: Tensor | None,
    sizes: list[int],
    transposed: bool,
) -> Tensor:
    """One operation to a compiler, which would otherwise keep the dequantised weight for the backward pass; added to
    inner factor^T where these are given."""
    shape = (sizes[0], sizes[1])
    weight = Packed4bit(packed, scales, code, sizes[2], shape, scale_code, scale_scales, scale_offset, sizes[3])
    full = in_full(weight, rows.dtype)
    if not transposed:
        full = full.t()
    return rows @ full if inner is None or factor is None else (inner @ factor.t()).addmm_(rows, full)


@_product.register_fake
def _(
    rows: Tensor,
    inner: Tensor | None,
    factor: Tensor | None,
    packed: Tensor,
    scales: Tensor,
    code: Tensor,
    scale_code: Tensor | None,
    scale_scales: Tensor | None,
    scale_offset: Tensor | None,
    sizes: list[int],
    transposed: bool,
) -> Tensor:
    return rows.new_empty((rows.shape[0], sizes[1] if transposed else sizes[0]))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.sizes, ctx.transposed = inputs[1:]
    ctx.save_for_backward(*tensors)


def _pull_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inner, factor, *stored = ctx.saved_tensors
    grad_rows = _product(grad, None, None, *stored, ctx.sizes, not ctx.transposed)
    beside = (None, None) if inner is None else (grad @ factor, grad.t() @ inner)
    return grad_rows, *beside, *[None] * 8


_product.register_autograd(_pull_back, setup_context=_remember)
