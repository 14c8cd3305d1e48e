"""Owns the step from packs to a `Batch`: one flat row, labels shifted inside every segment."""

from collections.abc import Sequence

import numpy as np
import torch

from xtuner.dataset.batch import IGNORE, Batch
from xtuner.dataset.store import Pack
from xtuner.ops.packing import Packing


def collate(packs: Sequence[Pack], rows: Sequence[int]) -> Batch:
    """Lay `packs` one after another into a row (1, T); `rows` are their numbers in the data set.

    `labels[0, t]` becomes what follows token t in its segment; the last token of a segment is never a place to learn.
    """
    lengths = [length for pack in packs for length in pack.lengths]
    input_ids = np.concatenate([pack.input_ids for pack in packs]).astype(np.int64)
    labels = np.concatenate([pack.labels for pack in packs]).astype(np.int64)
    shifted = np.full_like(labels, IGNORE)
    shifted[:-1] = labels[1:]
    ends = np.cumsum(lengths)
    shifted[ends - 1] = IGNORE
    positions = np.arange(len(input_ids)) - np.repeat(ends - lengths, lengths)
    return Batch(
        input_ids=torch.from_numpy(input_ids)[None],
        labels=torch.from_numpy(shifted)[None],
        positions=torch.from_numpy(positions.astype(np.int64))[None],
        packing=Packing.from_lengths(lengths),
        rows=tuple(rows),
    )
