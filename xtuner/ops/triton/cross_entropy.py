"""Loss and gradient of a softmax in one kernel: the logits are read twice and their gradient is written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


def cross_entropy_with_grad(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses (n,) in fp32 and their gradient (n, V) in the dtype of `logits` (n, V).

    `targets` (n,) int64, all of them real. Sums are fp32 whatever the dtype; the plain twin is
    `linear_cross_entropy.plain_cross_entropy_with_grad`.
    """
    rows, vocabulary = logits.shape
    assert logits.stride(1) == 1, "the logits of a row lie side by side"
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    grads = torch.empty((rows, vocabulary), dtype=logits.dtype, device=logits.device)
    if rows:
        with torch.cuda.device(logits.device):
            _kernel[(rows,)](logits, targets, losses, grads, logits.stride(0), vocabulary, BLOCK=BLOCK, num_warps=8)
    return losses, grads


@triton.jit
def _kernel(logits, targets, losses, grads, stride, vocabulary, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    grads += row * vocabulary
    target = tl.load(targets + row)
    largest = -float("inf")
    total = 0.0
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        part = tl.load(logits + column, mask=column < vocabulary, other=-float("inf")).to(tl.float32)
        above = tl.maximum(largest, tl.max(part))
        total = total * tl.exp(largest - above) + tl.sum(tl.exp(part - above))
        largest = above
    log_total = largest + tl.log(total)
    tl.store(losses + row, log_total - tl.load(logits + target).to(tl.float32))
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        part = tl.load(logits + column, mask=column < vocabulary, other=-float("inf")).to(tl.float32)
        grad = tl.exp(part - log_total) - (column == target).to(tl.float32)
        tl.store(grads + column, grad.to(grads.dtype.element_ty), mask=column < vocabulary)
