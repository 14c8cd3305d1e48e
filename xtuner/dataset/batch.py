"""A micro-batch, as objectives and models see it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xtuner.ops.linear_cross_entropy import IGNORE
from xtuner.ops.packing import Packing

__all__ = ["IGNORE", "Batch"]


@dataclass(frozen=True)
class Batch:
    """One row of T tokens that holds every sample of the micro-batch, one segment after another; no padding.

    `input_ids`, `labels`, `positions` are (1, T) int64. Labels are already shifted: `labels[0, t]` is what the
    model should say after token t, or IGNORE; the last token of a segment has none. Positions restart at 0 in
    every segment; `packing` holds the borders.
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    packing: Packing
    rows: tuple[int, ...] = ()
    """Indices of the samples or packs in the data set, to name a batch in an error."""
    learned: Tensor | None = None
    """Places (K,) of the labels that are not IGNORE, found before a batch is moved to a card; None: not looked for."""

    def to(self, device: torch.device | str) -> "Batch":
        """Move all tensors to a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            input_ids=move(self.input_ids),
            labels=move(self.labels),
            positions=move(self.positions),
            packing=self.packing.to(device),
            learned=None if self.learned is None else move(self.learned),
        )
