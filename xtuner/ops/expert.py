"""Mixtures of experts: every token through the few experts it was given to, and how evenly they are asked."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def run_experts(
    experts: Iterable[Callable[[Tensor], Tensor]], hidden: Tensor, weights: Tensor, chosen: Tensor
) -> Tensor:
    """Return for every token the weighted sum of what its experts say.

    `hidden` (N, D), `weights` and `chosen` (N, k); returns (N, D). Tokens are sorted by expert, so that each expert
    that is asked at all is called once, with its tokens side by side; it may be quantised or carry an adapter.
    """
    experts, num_chosen = list(experts), chosen.shape[1]
    experts_in_order, order = chosen.flatten().sort(stable=True)
    rows = hidden[order // num_chosen]
    counts = experts_in_order.bincount(minlength=len(experts)).tolist()
    parts = zip(experts, rows.split(counts), counts, strict=True)
    answers = torch.cat([expert(part) for expert, part, count in parts if count])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    answers = answers[back].unflatten(0, (-1, num_chosen))
    return (answers * weights[..., None].to(answers.dtype)).sum(dim=1)


def reference_experts(
    experts: Sequence[Callable[[Tensor], Tensor]], hidden: Tensor, weights: Tensor, chosen: Tensor
) -> Tensor:
    """The same token by token; what `run_experts` is tested against."""
    rows = [
        torch.stack([experts[int(index)](token[None])[0] * weight for index, weight in zip(row, scale, strict=True)])
        for token, row, scale in zip(hidden, chosen, weights, strict=True)
    ]
    return torch.stack(rows).sum(dim=1)


def balance(scores: Tensor, chosen: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Return for every sequence E * sum over experts of (share of the tokens) * (mean score): 1 if all are asked alike.

    `scores` (B, T, E), `chosen` (B, T, k); returns (B,), or with the borders `cu_seqlens` (S + 1,) of a packed row
    (B = 1) (S,). From https://arxiv.org/abs/2401.06066, section 3.3. The gradient flows through the scores.
    """
    num_experts = scores.shape[-1]
    asked = functional.one_hot(chosen, num_experts).sum(dim=-2).to(scores.dtype) / chosen.shape[-1]
    if cu_seqlens is None:
        return num_experts * (asked.mean(dim=1) * scores.mean(dim=1)).sum(dim=-1)
    lengths = cu_seqlens.diff().long()
    segment = torch.repeat_interleave(torch.arange(len(lengths), device=scores.device), lengths)
    total = scores.new_zeros(2, len(lengths), num_experts)
    total = total.index_add(1, segment, torch.stack((asked[0], scores[0])))
    shares = total / lengths[:, None]
    return num_experts * (shares[0] * shares[1]).sum(dim=-1)
