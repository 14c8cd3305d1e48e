"""The step of AdamW with bf16 moments in one kernel: every number is read once and written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from xtuner.ops.pace import Pace
from xtuner.ops.stochastic import FACTORS, THIRD, Keys

BLOCK = 1024
"""Numbers that a program moves."""
_ONE, _TWO, _THIRD = tl.constexpr(FACTORS[0]), tl.constexpr(FACTORS[1]), tl.constexpr(THIRD)


def adamw_step(weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, pace: Pace, keys: Keys) -> None:
    """Move `weight` (N,) and its moments in place; the random bits are those of its twin `ops.adamw`, and the last bit
    of a sum before it is rounded may differ."""
    count = len(weight)
    if not count:
        return
    with torch.cuda.device(weight.device):
        _kernel[(triton.cdiv(count, BLOCK),)](
            weight,
            grad,
            first,
            second,
            count,
            keys[0],
            keys[1],
            pace.decay,
            pace.rate,
            pace.root,
            pace.betas[1],
            1 - pace.betas[0],
            1 - pace.betas[1],
            pace.eps,
            BLOCK=BLOCK,
            num_warps=4,
        )


@triton.jit
def _mix(bits):  # type: ignore[no-untyped-def]
    bits ^= bits >> 16
    bits *= _ONE
    bits ^= bits >> 15
    bits *= _TWO
    return bits ^ (bits >> 16)


@triton.jit
def _round(values, bits):  # type: ignore[no-untyped-def]
    exact = values.to(tl.uint32, bitcast=True)
    moved = (exact + (bits & 0xFFFF)) & 0xFFFF0000
    moved = tl.where((exact & 0x7F800000) == 0x7F800000, exact, moved)  # infinity and nan
    return moved.to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit(do_not_specialize=["key", "other_key"])
def _kernel(  # type: ignore[no-untyped-def]
    weight,
    grad,
    first,
    second,
    count,
    key,
    other_key,
    decay,
    rate,
    root,
    two,
    rest_of_one,
    rest_of_two,
    eps,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = place < count
    slope = tl.load(grad + place, mask=real, other=0.0).to(tl.float32)
    mean = tl.load(first + place, mask=real, other=0.0).to(tl.float32)
    square = tl.load(second + place, mask=real, other=0.0).to(tl.float32)
    moved = tl.load(weight + place, mask=real, other=0.0).to(tl.float32)
    mean += (slope - mean) * rest_of_one
    square = square * two + slope * slope * rest_of_two
    moved = moved * decay - mean * rate / (tl.sqrt(square) / root + eps)
    bits = _mix(place.to(tl.uint32) + key.to(tl.uint32, bitcast=True))
    bits = _mix(bits ^ other_key.to(tl.uint32, bitcast=True))
    tl.store(first + place, _round(mean, bits), mask=real)
    tl.store(second + place, _round(square, bits >> 16), mask=real)
    if weight.dtype.element_ty == tl.bfloat16:
        tl.store(weight + place, _round(moved, _mix(bits + _THIRD)), mask=real)
    else:
        tl.store(weight + place, moved, mask=real)
