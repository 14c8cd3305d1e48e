"""The stored form of a 4-bit weight, as bitsandbytes writes it, in plain tensors.

Two numbers a byte, a scale for every `blocksize` numbers, and these scales, if doubly quantised, a byte each with a
scale of their own (https://arxiv.org/abs/2305.14314, section 3).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Packed4bit:
    """A weight (O, I) as bitsandbytes stores it, taken apart so that compilers see plain tensors."""

    packed: Tensor
    """(O * I / 2,) uint8; the higher half of a byte comes first."""
    scales: Tensor
    """(O * I / blocksize,) fp32, or uint8 with double quantisation."""
    code: Tensor
    """(16,) fp32: what the 16 numbers mean."""
    blocksize: int
    shape: tuple[int, int]
    scale_code: Tensor | None = None
    """(256,) fp32: what a byte of `scales` means."""
    scale_scales: Tensor | None = None
    """(blocks / scale_blocksize,) fp32."""
    scale_offset: Tensor | None = None
    """() fp32, added to every scale."""
    scale_blocksize: int = 256

    @classmethod
    def of(cls, packed: Tensor, state: Any) -> "Packed4bit":
        """Take apart a 4-bit parameter's data and its `quant_state`."""
        inner = state.state2 if state.nested else None
        return cls(
            packed.view(-1),
            state.absmax,
            state.code.to(packed.device),
            state.blocksize,
            (state.shape[0], state.shape[1]),
            None if inner is None else inner.code.to(packed.device),
            None if inner is None else inner.absmax,
            None if inner is None else state.offset,
            256 if inner is None else inner.blocksize,
        )

    @property
    def rows_apart(self) -> int:
        """How many rows lie between two places where the weight can be cut: blocks and blocks of scales end there."""
        together = self.blocksize * (self.scale_blocksize if self.scale_code is not None else 1)
        return together // math.gcd(together, self.shape[1])

    def rows(self, start: int, stop: int) -> "Packed4bit":
        """Return the rows `start` to `stop` as views; `start` is a multiple of `rows_apart`."""
        assert start % self.rows_apart == 0, "a block of scales would be cut"
        stop = min(stop, self.shape[0])
        first, last = start * self.shape[1], stop * self.shape[1]
        blocks = slice(first // self.blocksize, -(-last // self.blocksize))
        outer = self.scale_scales
        if outer is not None:
            outer = outer[blocks.start // self.scale_blocksize : -(-blocks.stop // self.scale_blocksize)]
        return replace(
            self,
            packed=self.packed[first // 2 : -(-last // 2)],
            scales=self.scales[blocks],
            shape=(stop - start, self.shape[1]),
            scale_scales=outer,
        )
