"""Where the segments of a packed row begin."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Segment borders of one packed row of T tokens, in the form of the variable-length attention kernels.

    `cu_seqlens` (S + 1,) int32: 0, ends of the S segments, T. `max_seqlen`: tokens of the longest one.
    """

    cu_seqlens: Tensor
    max_seqlen: int

    @classmethod
    def from_lengths(cls, lengths: list[int]) -> "Packing":
        """Make the borders of segments with these lengths (tokens), in order."""
        borders = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        borders[1:] = torch.tensor(lengths, dtype=torch.int32).cumsum(0)
        return cls(borders, max(lengths))

    def to(self, device: torch.device | str) -> "Packing":
        """Move the borders to a device."""
        return Packing(self.cu_seqlens.to(device, non_blocking=True), self.max_seqlen)
