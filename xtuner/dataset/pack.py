"""Owns packing: whole samples are put together so that packs are nearly full; none is cut, mixed or left out."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packs:
    """Pack p holds the samples `members[borders[p] : borders[p + 1]]`."""

    members: np.ndarray
    borders: np.ndarray

    def __len__(self) -> int:
        return len(self.borders) - 1

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.members[self.borders[pack] : self.borders[pack + 1]]


def singles(num_samples: int) -> Packs:
    """Every sample alone."""
    return Packs(np.arange(num_samples), np.arange(num_samples + 1))


def best_fit(lengths: np.ndarray, max_length: int, seed: int) -> Packs:
    """Pack samples of `lengths` (tokens) into packs of at most `max_length` tokens: best fit, longest first.

    Which of equally long samples goes where is drawn with `seed`. Packs are ordered by their first sample, samples in
    a pack by number. Takes samples of one length at a time, so that a million samples take about a second
    (best-fit decreasing: Johnson 1974; for training: https://arxiv.org/abs/2404.10830).
    """
    assert len(lengths) == 0 or lengths.max() <= max_length
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    pack_of = np.empty(len(lengths), np.int64)
    sizes, starts, counts = np.unique(-lengths[order], return_index=True, return_counts=True)
    room: dict[int, list[np.ndarray]] = {}  # tokens that still fit -> packs with that room
    open_rooms = 0  # bit r is set: there are packs with room r
    num_packs = 0
    for size, start, count in zip((-sizes).tolist(), starts.tolist(), counts.tolist(), strict=True):
        at, end = start, start + count
        while at < end:
            fitting = open_rooms >> size
            if fitting:
                space = size + (fitting & -fitting).bit_length() - 1
                packs = room[space].pop()
                if not room[space]:
                    open_rooms &= ~(1 << space)
            else:
                space = max_length
                packs = np.arange(num_packs, num_packs + -(-(end - at) // (space // size)))
                num_packs += len(packs)
            # Best fit fills a pack as long as samples of this size fit: its room is the least that is enough.
            each = space // size
            full = min(len(packs), (end - at) // each)
            pack_of[order[at : at + full * each]] = np.repeat(packs[:full], each)
            at += full * each
            left = [(packs[:full], space - each * size)]
            if full < len(packs):
                some = end - at
                pack_of[order[at : at + some]] = packs[full]
                at += some
                left += [(packs[full : full + 1], space - some * size), (packs[full + 1 :], space)]
            for rest, free in left:
                if len(rest) and free > 0:
                    room.setdefault(free, []).append(rest)
                    open_rooms |= 1 << free
    return _in_order(pack_of, num_packs)


def _in_order(pack_of: np.ndarray, num_packs: int) -> Packs:
    firsts = np.full(num_packs, len(pack_of))
    np.minimum.at(firsts, pack_of, np.arange(len(pack_of)))
    rank = np.empty(num_packs, np.int64)
    rank[np.argsort(firsts, kind="stable")] = np.arange(num_packs)
    members = np.argsort(rank[pack_of], kind="stable")
    borders = np.concatenate([[0], np.cumsum(np.bincount(rank[pack_of], minlength=num_packs))])
    return Packs(members, borders)
