"""Rotary position embedding with linear and dynamic-NTK scaling, as pure functions of the positions at hand."""

from typing import Any, Protocol

import torch
from torch import Tensor


class RopeConfig(Protocol):
    """The keys of a config that decide about the rotation."""

    hidden_size: int
    num_attention_heads: int
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: dict[str, Any] | None


def rotary_tables(
    config: RopeConfig, positions: Tensor, dtype: torch.dtype, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return cos and sin (B, T, d) for `positions` (B, T).

    Dynamic NTK (https://arxiv.org/abs/2309.00071, section 3.3) widens the base when a sequence is longer than
    `max_position_embeddings`; the sequence is the row, or with `cu_seqlens` (S + 1,) each segment of the row by
    itself. Nothing is remembered from one call to the next.
    """
    size = config.hidden_size // config.num_attention_heads
    scaling = config.rope_scaling or {}
    kind, factor = scaling.get("type", scaling.get("rope_type")), scaling.get("factor", 1.0)
    angles = positions.float()
    exponent = torch.arange(0, size, 2, device=positions.device).float() / size
    base = torch.full((1, 1), float(config.rope_theta), device=positions.device)
    if kind == "linear":
        angles = angles / factor
    elif kind == "dynamic":
        limit = config.max_position_embeddings
        length = _sequence_lengths(positions, cu_seqlens).clamp(min=limit).float()
        base = base * (factor * length / limit - (factor - 1)) ** (size / (size - 2))
    angles = angles[..., None] * (1.0 / base[..., None] ** exponent)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the head dimension of (B, H, T, d), whose halves hold the pairs (https://arxiv.org/abs/2104.09864)."""
    first, second = states.chunk(2, dim=-1)
    return states * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def _sequence_lengths(positions: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Return how long the sequence of each token is: (1, 1), or (1, T) for a packed row."""
    if cu_seqlens is None:
        return positions.max().view(1, 1) + 1
    lengths = cu_seqlens.diff().long()
    return torch.repeat_interleave(lengths, lengths, output_size=positions.shape[1])[None]
