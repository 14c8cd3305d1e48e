"""Attention with linear biases (ALiBi, https://arxiv.org/abs/2108.12409), as further columns of queries and keys."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

NUM_COLUMNS = 8
"""Six are used; kernels want widths that 8 divides."""
NUM_PARTS = 3
"""A slope has 24 significant bits, bfloat16 has 8."""
LOW = 256
"""Whole numbers below it are exact in bfloat16, and so are its multiples up to 255 * 256."""


class Alibi(NamedTuple):
    """The bias slope * (key's place - query's place) of every head, for the tokens at hand.

    A query's own place moves all its scores alike, which softmax does not see, so slope * (key's place) does. That is a
    product of a column of the query and a column of the key: every attention kernel computes it, packed rows, caches
    and padding included. In half precision the factors are split into parts that are exact there; kernels add the
    products in fp32. A named tuple, so that tools that move the arguments of a layer to its device find the tensors.
    """

    query_columns: Tensor
    """(1, H, 1, C): parts of the slopes."""
    key_columns: Tensor
    """(B, 1, T, C): parts of the places."""

    @property
    def late(self) -> bool:
        """Whether keys are encoded after the cache: no, a key's place does not change."""
        return False

    def query(self, states: Tensor) -> Tensor:
        """(B, H, T, d) -> (B, H, T, d + C)."""
        return _append(states, self.query_columns)

    def key(self, states: Tensor) -> Tensor:
        """(B, H, T, d) -> (B, H, T, d + C)."""
        return _append(states, self.key_columns)


def build_alibi(num_heads: int, scaling: float, positions: Tensor) -> Alibi:
    """Return the bias for tokens at `positions` (B, T), whose scores are multiplied by `scaling`."""
    rest = torch.tensor(alibi_slopes(num_heads), dtype=torch.float32, device=positions.device) / scaling
    parts = []
    for _ in range(NUM_PARTS):
        part = rest.bfloat16().float()
        rest = rest - part
        parts.append(part)
    low = positions.remainder(LOW)
    query = torch.stack(parts, dim=-1).repeat_interleave(2, dim=-1)
    key = torch.stack([positions - low, low] * NUM_PARTS, dim=-1).float()
    query, key = (functional.pad(columns, (0, NUM_COLUMNS - 2 * NUM_PARTS)) for columns in (query, key))
    return Alibi(query[None, :, None], key[:, None])


def alibi_slopes(num_heads: int) -> list[float]:
    """Return the slope of each head: a geometric row, for other numbers than powers of two filled from the next row."""
    power = 2 ** math.floor(math.log2(num_heads))
    ratio = 2 ** -(8 / power)
    slopes = [ratio ** (head + 1) for head in range(power)]
    return slopes if power == num_heads else slopes + alibi_slopes(2 * power)[0::2][: num_heads - power]


def _append(states: Tensor, columns: Tensor) -> Tensor:
    batch, heads, length, _ = states.shape
    return torch.cat((states, columns.to(states.dtype).expand(batch, heads, length, -1)), dim=-1)
