"""Rows of a pinned matrix, read over the bus by the card itself."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def host_rows(matrix: Tensor, ids: Tensor) -> Tensor:
    """Return the rows `ids` (...) of `matrix` (V, D), in pinned host memory, on the card of the ids: (..., D).

    The plain twin is `torch.nn.functional.embedding`. An id that is no row gives NaN.
    """
    assert matrix.is_pinned(), "a card can read pinned memory only"
    assert ids.is_contiguous()
    num_rows, width = matrix.shape
    rows = torch.empty((*ids.shape, width), dtype=matrix.dtype, device=ids.device)
    if rows.numel():
        with torch.cuda.device(ids.device):
            _kernel[(ids.numel(), triton.cdiv(width, BLOCK))](matrix, ids, rows, num_rows, width, BLOCK=BLOCK)
    return rows


@triton.jit
def _kernel(matrix, ids, rows, num_rows, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + place).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (column < width) & (row >= 0) & (row < num_rows)
    values = tl.load(matrix + row * width + column, mask=inside, other=float("nan"))
    tl.store(rows + place * width + column, values, mask=column < width)
