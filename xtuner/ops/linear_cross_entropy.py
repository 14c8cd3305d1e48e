"""Cross entropy from hidden states, a few rows at a time, so that the logits of a whole batch never exist.

Gradients are computed together with the loss, chunk by chunk, and scaled in the backward pass: one pass over the
head instead of two, and nothing of size (N, V) is kept (the idea of https://arxiv.org/abs/2410.10989, section 3).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

IGNORE = -100
"""A label that is not learned."""
CHUNK_LOGITS = 2**26
"""Logits of one chunk: 128 MiB in bf16."""
TRAINED_CHUNK_LOGITS = 2**28
"""The same when the head is trained: every chunk reads and writes its whole gradient, so there should be few."""


def chunk_rows(vocabulary: int, *, trained: bool = False) -> int:
    """Return how many rows of logits over `vocabulary` tokens make one chunk."""
    return max(16, (TRAINED_CHUNK_LOGITS if trained else CHUNK_LOGITS) // vocabulary)


def linear_cross_entropy(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    labels: Tensor,
    chunk: int,
    *,
    parameters: Sequence[nn.Parameter] = (),
    learned: Tensor | None = None,
) -> Tensor:
    """Return the SUM of -log p(label) over the rows that have one, an fp32 scalar.

    `hidden` (N, D), `labels` (N,) with IGNORE for rows that are not learned (they never reach the head);
    `head` maps (n, D) to logits (n, V), for n up to `chunk`, in any way: it may be quantised or carry an adapter.
    `parameters` are those of the head that are trained; their gradients are summed over chunks in fp32.
    `learned` (K,) are the places of the labels, if they are known: to find them on a card the host must wait for it.
    """
    kept = find_learned(labels) if learned is None else learned
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    rows, targets = hidden.index_select(0, kept), labels.index_select(0, kept)
    loss: Tensor = _LinearCrossEntropy.apply(rows, targets, head, chunk, torch.is_grad_enabled(), *trained)
    return loss


def find_learned(labels: Tensor) -> Tensor:
    """Return the places (K,) of `labels` (N,) that are not IGNORE."""
    return (labels != IGNORE).nonzero().squeeze(1)


def cross_entropy_with_grad(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log softmax at `targets` (n,) as (n,) fp32, and the gradient of their sum, (n, V) like `logits`."""
    if logits.is_cuda and logits.stride(1) == 1:
        from xtuner.ops.triton.cross_entropy import cross_entropy_with_grad as fused

        return fused(logits, targets)
    return plain_cross_entropy_with_grad(logits, targets)


def plain_cross_entropy_with_grad(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same with torch's own operations, in fp32."""
    log_share = logits.float().log_softmax(dim=-1)
    losses = -log_share.gather(1, targets[:, None]).squeeze(1)
    grads = log_share.exp_()
    grads[torch.arange(len(targets), device=targets.device), targets] -= 1
    return losses, grads.to(logits.dtype)


def reference_linear_cross_entropy(
    hidden: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor, chunk: int = 0, **_: Any
) -> Tensor:
    """The same from the full logits; what `linear_cross_entropy` is tested against."""
    return functional.cross_entropy(head(hidden).float(), labels, ignore_index=IGNORE, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        targets: Tensor,
        head: Callable[[Tensor], Tensor],
        chunk: int,
        with_grad: bool,
        *parameters: nn.Parameter,
    ) -> Tensor:
        wants_rows = with_grad and ctx.needs_input_grad[0]
        wanted = list(parameters) if with_grad else []
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        grad_rows = torch.empty_like(rows) if wants_rows else None
        sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in wanted]
        with torch.set_grad_enabled(wants_rows or bool(wanted)), _uncached_autocast(rows.device.type):
            for start in range(0, len(rows), chunk):
                part = rows[start : start + chunk].detach().requires_grad_(wants_rows)
                logits = head(part)
                sources = ([part] if wants_rows else []) + wanted
                losses, grad_logits = cross_entropy_with_grad(logits.detach(), targets[start : start + chunk])
                total += losses.sum()
                if not sources:
                    continue
                grads = list(torch.autograd.grad(logits, sources, grad_logits))
                if grad_rows is not None:
                    grad_rows[start : start + chunk] = grads.pop(0)
                for sum_, grad in zip(sums, grads, strict=True):
                    sum_ += grad
        ctx.save_for_backward(grad_rows, *sums)
        ctx.dtypes = [parameter.dtype for parameter in wanted]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows, *sums = ctx.saved_tensors
        if grad_rows is not None:  # in fp32, since a loss scale may exceed fp16
            grad_rows = (grad_rows.float() * grad_output).to(grad_rows.dtype)
        scaled = [total.mul_(grad_output).to(dtype) for total, dtype in zip(sums, ctx.dtypes, strict=True)]
        return grad_rows, None, None, None, None, *scaled


def _uncached_autocast(kind: str) -> AbstractContextManager[Any]:
    """Keep autocast on, if it is, without its cache: weights cast while no gradient was wanted would lose theirs."""
    if not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False)
