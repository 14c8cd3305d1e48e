"""One step of AdamW whose moments are stored in bf16, rounded by chance, and the weight too where it is bf16."""

import torch
from torch import Tensor

from xtuner.ops.pace import Pace
from xtuner.ops.stochastic import Keys, more_bits, random_bits, round_by_chance

CHUNK = 2**18
"""Numbers that the plain way moves at a time: they stay in the processor's cache."""


@torch.no_grad()
def adamw_step(weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, pace: Pace, keys: Keys) -> None:
    """Move `weight` (any shape, fp32 or bf16) and its bf16 moments in place.

    Each number of the moments, and of a bf16 weight, is rounded up or down by chance, with bits that hang on `keys`
    and its place alone; `grad` may be of any format. On a card one kernel does it.
    """
    assert weight.dtype in (torch.float32, torch.bfloat16)
    assert first.dtype == second.dtype == torch.bfloat16
    dense = weight if weight.is_contiguous() else weight.contiguous()
    w, g, m, v = (tensor.view(-1) for tensor in (dense, grad.contiguous(), first, second))
    if weight.is_cuda:
        from xtuner.ops.triton.adamw import adamw_step as fused

        fused(w, g, m, v, pace, keys)
    else:
        plain_adamw_step(w, g, m, v, pace, keys)
    if dense is not weight:
        weight.copy_(dense)


@torch.no_grad()
def plain_adamw_step(weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, pace: Pace, keys: Keys) -> None:
    """The same with torch's own operations; all are (N,)."""
    one, two = pace.betas
    for start in range(0, len(weight), CHUNK):
        w, g, m, v = (tensor[start : start + CHUNK] for tensor in (weight, grad, first, second))
        slope = g.float()
        mean = m.float()
        mean.add_((slope - mean).mul_(1 - one))
        square = v.float().mul_(two).add_((slope * slope).mul_(1 - two))
        bits = random_bits(start, len(w), keys, w.device)
        m.copy_(round_by_chance(mean, bits))
        v.copy_(round_by_chance(square, bits >> 16))
        moved = w.float()
        moved = moved.mul(pace.decay).sub_(mean.mul_(pace.rate).div_(square.sqrt_().div_(pace.root).add_(pace.eps)))
        w.copy_(round_by_chance(moved, more_bits(bits)) if w.dtype == torch.bfloat16 else moved)
