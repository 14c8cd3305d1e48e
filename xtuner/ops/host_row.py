"""Rows of a matrix that stays in host memory: only those that are asked for travel to the card."""

import torch
from torch import Tensor
from torch.nn import functional


def host_copy(matrix: Tensor, device: torch.device) -> Tensor:
    """Return `matrix` (V, D) in host memory, pinned where `device` is a card that will read it."""
    host = torch.empty(matrix.shape, dtype=matrix.dtype, pin_memory=device.type == "cuda")
    return host.copy_(matrix)


def host_rows(matrix: Tensor, ids: Tensor, device: torch.device) -> Tensor:
    """Return the rows `ids` (...) of `matrix` (V, D), made by `host_copy`, on `device`: (..., D).

    A card reads pinned memory itself, so the host does not wait until it knows the ids.
    """
    if device.type != "cuda":
        return functional.embedding(ids.to(matrix.device), matrix)
    from xtuner.ops.triton.host_row import host_rows as fused

    return fused(matrix, ids.to(device, non_blocking=True).contiguous())
