"""Rotary position embedding with linear and dynamic-NTK scaling, as pure functions of the positions at hand."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from xtuner.model.families.place import Places


@dataclass(frozen=True)
class Rope:
    """What decides about the rotation."""

    size: int
    """Numbers of a head that are turned."""
    base: float = 10000.0
    scaling: Literal["linear", "dynamic"] | None = None
    factor: float = 1.0
    limit: int = 0
    """Tokens; "dynamic" scales what is longer."""


def read_rope(config: Any) -> Rope:
    """Read the keys of a Llama-like config: rope_theta, rope_scaling, max_position_embeddings.

    Raises:
        ValueError: a scaling that is neither linear nor dynamic, a factor below 1, or anything else beside them.
    """
    size = config.hidden_size // config.num_attention_heads
    scaling = config.rope_scaling
    if scaling is None:
        return Rope(size, float(config.rope_theta))
    kind, factor = scaling.get("type", scaling.get("rope_type")), scaling.get("factor")
    if kind not in ("linear", "dynamic") or not isinstance(factor, int | float) or factor < 1:
        raise ValueError(f"rope_scaling must be linear or dynamic with a factor of 1 or more: {scaling}")
    if unknown := {key for key, value in scaling.items() if value is not None} - {"type", "rope_type", "factor"}:
        raise ValueError(f"rope_scaling: {', '.join(sorted(unknown))} is not known here")
    return Rope(size, float(config.rope_theta), kind, float(factor), config.max_position_embeddings)


class Rotary(NamedTuple):
    """The rotation of the tokens at hand (https://arxiv.org/abs/2104.09864); cos and sin are (B, T, d).

    A head wider than d is turned in its first d numbers only. A named tuple, so that tools that move the arguments
    of a layer to its device find the tensors.
    """

    cos: Tensor
    sin: Tensor
    key_cos: Tensor | None = None
    """(B, S, d): for all keys, cached ones included. Then the cache holds bare keys, since the rotation of every key
    changes with the length of the sequence."""
    key_sin: Tensor | None = None
    interleaved: bool = False
    """Neighbours are pairs, as in ChatGLM; else the halves of a head hold the pairs."""

    @property
    def late(self) -> bool:
        """Whether keys are encoded after the cache instead of before it."""
        return self.key_cos is not None

    def query(self, states: Tensor) -> Tensor:
        """Encode (B, H, T, d)."""
        return rotate(states, self.cos, self.sin, self.interleaved)

    def key(self, states: Tensor) -> Tensor:
        """Encode (B, G, T, d), or where `late` (B, G, S, d)."""
        if self.key_cos is None or self.key_sin is None:
            return self.query(states)
        return rotate(states, self.key_cos, self.key_sin, self.interleaved)


def build_rotary(rope: Rope, at: Places) -> Rotary:
    """Return the rotation of the tokens at hand, and of cached keys where it changes with the length of the sequence.

    Dynamic NTK (https://arxiv.org/abs/2309.00071, section 3.3) widens the base when a sequence is longer than
    `rope.limit`; the sequence is the row, or each segment of a packed row by itself. Nothing is remembered from one
    call to the next.
    """
    if rope.scaling != "dynamic":
        stretch = rope.factor if rope.scaling == "linear" else 1.0
        return Rotary(*rotary_tables(at.positions, rope.size, rope.base, at.dtype, stretch=stretch))
    length = at.lengths().clamp(min=rope.limit).float()
    wider = rope.factor * length / rope.limit - (rope.factor - 1)
    return widened_rotary(rope.size, rope.base * wider ** (rope.size / (rope.size - 2)), at)


def widened_rotary(size: int, base: Tensor, at: Places) -> Rotary:
    """Return the rotation by a `base` that hangs on the length of the sequence, of cached keys too."""
    keys = () if at.key_positions is None else rotary_tables(at.key_positions, size, base, at.dtype)
    return Rotary(*rotary_tables(at.positions, size, base, at.dtype), *keys)


def rotary_tables(
    positions: Tensor,
    size: int,
    base: float | Tensor,
    dtype: torch.dtype,
    *,
    stretch: float = 1.0,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return cos and sin (B, T, size) of the angles position / stretch / base ** (2i / size).

    `positions` (B, T); `base` is one number or a tensor that broadcasts with them.
    """
    exponent = torch.arange(0, size, 2, device=positions.device).float() / size
    base = torch.as_tensor(base, dtype=torch.float32, device=positions.device)
    angles = positions.float()[..., None] / stretch * (1.0 / base[..., None] ** exponent)
    angles = angles.repeat_interleave(2, dim=-1) if interleaved else torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate (B, H, T, e) in the first d <= e numbers of each head; `cos` and `sin` are (B, T, d)."""
    size = cos.shape[-1]
    turned, rest = states[..., :size], states[..., size:]
    if interleaved:
        swapped = torch.stack((-turned[..., 1::2], turned[..., 0::2]), dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        swapped = torch.cat((-second, first), dim=-1)
    turned = turned * cos[:, None] + swapped * sin[:, None]
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
