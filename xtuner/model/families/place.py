"""Where the tokens at hand stand, and what lets queries and keys know it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """The places of the tokens that are computed now, and of those they may look at."""

    positions: Tensor
    """(B, T)."""
    dtype: torch.dtype
    """Of the hidden states."""
    cu_seqlens: Tensor | None = None
    """(S + 1,): borders of the segments of a packed row."""
    key_positions: Tensor | None = None
    """(B, S): with a cache the places of all keys, those in the cache and those at hand."""
    padding: Tensor | None = None
    """(B, S): 0 where rows are filled up."""

    def lengths(self) -> Tensor:
        """Return how long the sequence of each token is: (B, 1), or (1, T) for a packed row."""
        if self.cu_seqlens is None:
            return self.positions.amax(dim=1, keepdim=True) + 1
        lengths = self.cu_seqlens.diff().long()
        return torch.repeat_interleave(lengths, lengths, output_size=self.positions.shape[1])[None]


class PositionEncoding(Protocol):
    """How places get into queries and keys: `rope.Rotary`, `alibi.Alibi`."""

    @property
    def late(self) -> bool:
        """Whether keys are encoded after the cache instead of before it."""
        ...

    def query(self, states: Tensor) -> Tensor:
        """Encode (B, H, T, d)."""
        ...

    def key(self, states: Tensor) -> Tensor:
        """Encode (B, G, T, d)."""
        ...
