"""A 4-bit weight in full, in one kernel: scales of scales, scales and numbers are looked up on the way."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import libdevice

from xtuner.ops.packed4bit import Packed4bit

ROWS = 64
"""Blocks of one scale that a program makes."""


def dequantise(weight: Packed4bit, dtype: torch.dtype) -> Tensor:
    """Return the weight (O, I) in `dtype`; equal bit by bit to its twin `ops.nf4.dequantise`."""
    full = torch.empty(weight.shape, dtype=dtype, device=weight.packed.device)
    nested = weight.scale_code is not None
    num_bytes = weight.packed.numel()
    half = weight.blocksize // 2
    with torch.cuda.device(full.device):
        _kernel[(triton.cdiv(num_bytes, half * ROWS),)](
            weight.packed,
            weight.scales,
            weight.code,
            weight.scale_code if nested else weight.code,
            weight.scale_scales if nested else weight.code,
            weight.scale_offset if nested else weight.code,
            full,
            num_bytes,
            full.numel(),
            HALF=half,
            SCALE_BLOCK=weight.scale_blocksize,
            NESTED=nested,
            ROWS=ROWS,
            num_warps=4,
        )
    return full


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    packed,
    scales,
    code,
    scale_code,
    scale_scales,
    scale_offset,
    full,
    num_bytes,
    count,
    HALF: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    ROWS: tl.constexpr,
):
    block = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = block * HALF < num_bytes
    scale = tl.load(scales + block, mask=real, other=0)
    if NESTED:
        outer = tl.load(scale_scales + block // SCALE_BLOCK, mask=real, other=0.0)
        # rounded after the product and after the sum, as bitsandbytes does: no fused multiply-add
        value = libdevice.mul_rn(tl.load(scale_code + scale.to(tl.int32)), outer)
        scale = libdevice.add_rn(value, tl.load(scale_offset))
    start = block.to(tl.int64)[:, None] * HALF
    place = start + tl.arange(0, HALF)[None, :]
    pair = tl.load(packed + place, mask=place < num_bytes, other=0).to(tl.int32)
    # the sixteen numbers lie in one line of the cache: looking them up costs less than fifteen selections
    first = (tl.load(code + (pair >> 4)) * scale[:, None]).to(full.dtype.element_ty)
    second = (tl.load(code + (pair & 15)) * scale[:, None]).to(full.dtype.element_ty)
    wide = 2 * start + tl.arange(0, 2 * HALF)[None, :]
    tl.store(full + wide, tl.interleave(first, second), mask=wide < count)
