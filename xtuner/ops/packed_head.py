"""The product with an output head in 4 bits, which is dequantised a slab of its vocabulary at a time.

The head is the one layer whose rows are as many as the vocabulary, so its weight in full is often as large as all that
a card has left. A slab is kept until another is asked for: a head that is one slab is dequantised once for all chunks
of a loss, forward and backward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtuner.ops.nf4 import in_full
from xtuner.ops.packed4bit import Packed4bit

SLAB = 2**26
"""Numbers of a head that exist in full at a time: 128 MiB in half precision."""


class PackedHead:
    """A frozen head (V, D) in 4 bits, callable on rows; made anew for each loss, with which its slab goes."""

    def __init__(
        self, weight: Packed4bit, bias: Tensor | None = None, dtype: torch.dtype | None = None, slab: int | None = None
    ) -> None:
        """Products are made in `dtype` (None: that of the rows) where there is no autocast; `slab` numbers (`SLAB`), or
        a few rows of them more, exist in full at a time."""
        self.weight, self.bias, self.dtype = weight, bias, dtype
        step = weight.rows_apart * max(1, (slab or SLAB) // (weight.rows_apart * weight.shape[1]))
        self.starts = range(0, weight.shape[0], step)
        self._held: tuple[int, torch.dtype] | None = None
        self._slab: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, D) -> logits (n, V), in the dtype of the product."""
        kind = rows.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype or rows.dtype
        logits: Tensor = _Product.apply(rows.to(dtype), self)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)

    def multiply(self, rows: Tensor) -> Tensor:
        """x W^T: (n, D) -> (n, V). Autograd sees nothing of it."""
        if len(self.starts) == 1:
            return rows @ self._at(0, rows.dtype).t()
        logits = rows.new_empty((len(rows), self.weight.shape[0]))
        for start in self.starts:
            slab = self._at(start, rows.dtype)
            logits[:, start : start + len(slab)] = rows @ slab.t()
        return logits

    def pull_back(self, grads: Tensor) -> Tensor:
        """g W: (n, V) -> (n, D), summed over slabs in fp32, from the one that is there already."""
        if len(self.starts) == 1:
            return grads @ self._at(0, grads.dtype)
        total = torch.zeros((len(grads), self.weight.shape[1]), dtype=torch.float32, device=grads.device)
        for start in reversed(self.starts):
            slab = self._at(start, grads.dtype)
            total += grads[:, start : start + len(slab)] @ slab
        return total.to(grads.dtype)

    def _at(self, start: int, dtype: torch.dtype) -> Tensor:
        """Return the slab that begins at row `start` in `dtype`."""
        if self._slab is None or self._held != (start, dtype):
            self._slab = None  # its memory is that of the next one
            self._slab = in_full(self.weight.rows(start, start + self.starts.step), dtype)
            self._held = (start, dtype)
        return self._slab


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, head: PackedHead) -> Tensor:
        ctx.head = head
        return head.multiply(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return ctx.head.pull_back(grad_output), None
