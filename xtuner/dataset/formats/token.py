"""Owns the formats whose rows are tokens already: columns of ids, and the rows of InternEvo's .bin files."""

import itertools
from collections.abc import Sequence
from typing import Any

from xtuner.dataset.row import BadRow, Row, Tokens

NOT_LEARNED = -100


def tokens(row: Row) -> Tokens:
    """Read `input_ids`, and where present `labels` (-100: not learned), `attention_mask` and `cumulative_len`.

    Tokens that the mask leaves out are padding. `cumulative_len` holds the borders of the samples in a packed row.
    """
    ids = _ids(row, "input_ids")
    labels = _ids(row, "labels") if row.get("labels") is not None else ids
    mask = _ids(row, "attention_mask") if row.get("attention_mask") is not None else [1] * len(ids)
    if not len(ids) == len(labels) == len(mask):
        raise BadRow("columns of tokens have different lengths")
    if any(label not in (NOT_LEARNED, index) for index, label in zip(ids, labels, strict=True)):
        raise BadRow("a label is neither its token nor -100")
    borders = _ids(row, "cumulative_len") if row.get("cumulative_len") is not None else [0, len(ids)]
    if borders[:1] != [0] or borders[-1] != len(ids) or borders != sorted(borders):
        raise BadRow("cumulative_len does not go from 0 to the number of tokens")
    samples = []
    for begin, end in itertools.pairwise(borders):
        kept = [place for place in range(begin, end) if mask[place]]
        if kept:
            samples.append(([ids[place] for place in kept], [labels[place] != NOT_LEARNED for place in kept]))
    if not samples:
        raise BadRow("no tokens")
    if min(min(sample) for sample, _ in samples) < 0:
        raise BadRow("a token below zero")
    return Tokens(samples)


def internevo(row: Row) -> Tokens:
    """Read `tokens`: a token that is zero or below is not learned, its id is the number without the sign."""
    signed = _ids(row, "tokens")
    if not signed:
        raise BadRow("no tokens")
    return Tokens([([abs(token) for token in signed], [token > 0 for token in signed])])


def _ids(row: Row, column: str) -> list[int]:
    listed: Any = row.get(column)
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise BadRow(f"no list of tokens in {column}")
    if listed and isinstance(listed[0], list | tuple):
        raise BadRow(f"a list of lists in {column}")
    try:
        ids = [int(value) for value in listed]
    except (TypeError, ValueError):
        raise BadRow(f"something other than numbers in {column}") from None
    if any(isinstance(value, float) and value != index for value, index in zip(listed, ids, strict=True)):
        raise BadRow(f"something other than whole numbers in {column}")
    return ids
