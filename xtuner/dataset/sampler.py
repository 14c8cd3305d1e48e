"""Owns the order in which packs are trained on."""

from functools import lru_cache

import numpy as np


class Order:
    """Which packs a rank sees at which iteration: a pure function, so that resuming needs no state.

    Every epoch each pack comes once, in a new order when `shuffle`. The last iteration of an epoch holds what is left,
    spread over the ranks; when fewer packs than ranks are left, some ranks get a spare one, to keep them busy.

    With `lengths` (tokens of each pack) the packs of an optimiser step (`accumulate` iterations) are dealt out so that
    the packs of an iteration are about equally long, and the sums of the ranks over the step: ranks wait for one
    another after each step, some strategies within each iteration. Which packs a step holds stays the same.
    """

    def __init__(
        self,
        num_packs: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world: int = 1,
        *,
        lengths: np.ndarray | None = None,
        accumulate: int = 1,
    ) -> None:
        assert num_packs > 0
        assert batch_size > 0
        assert 0 <= rank < world
        self.num_packs, self.batch_size, self.shuffle, self.seed = num_packs, batch_size, shuffle, seed
        self.rank, self.world = rank, world
        self.iters_per_epoch = -(-num_packs // (batch_size * world))
        self.lengths, self.accumulate = lengths if world > 1 else None, accumulate
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._block = lru_cache(maxsize=2)(self._make_block)

    def of(self, rank: int) -> "Order":
        """Return the order of another rank."""
        other = Order(
            self.num_packs,
            self.batch_size,
            self.shuffle,
            self.seed,
            rank,
            self.world,
            lengths=self.lengths,
            accumulate=self.accumulate,
        )
        return other

    def is_spare(self, iteration: int) -> bool:
        """Whether this rank's packs of an iteration are those of another rank, because too few were left."""
        step = iteration % self.iters_per_epoch
        return self.num_packs - step * self.batch_size * self.world <= self.rank

    def rows(self, iteration: int) -> list[int]:
        """Return the packs of this rank at `iteration`, counted from 0 over all epochs."""
        epoch, step = divmod(iteration, self.iters_per_epoch)
        if self.lengths is not None:
            start = max(iteration - iteration % self.accumulate - epoch * self.iters_per_epoch, 0)
            end = min(iteration - iteration % self.accumulate + self.accumulate, (epoch + 1) * self.iters_per_epoch)
            return self._block(epoch, start, end - epoch * self.iters_per_epoch)[step - start]
        return self._spread(self._rows(epoch, step, step + 1))

    def _rows(self, epoch: int, first: int, end: int) -> np.ndarray:
        wide = self.batch_size * self.world
        return self._epoch(epoch)[first * wide : end * wide]

    def _spread(self, rows: np.ndarray) -> list[int]:
        if len(rows) < self.world:
            rows = np.resize(rows, self.world)
        return [int(row) for row in rows[self.rank :: self.world]]

    def _make_block(self, epoch: int, first: int, end: int) -> list[list[int]]:
        """Deal out the iterations `first` ... `end` of an epoch: the longest packs first, each to the rank that has
        the fewest tokens of those that have room in the iteration."""
        assert self.lengths is not None
        rows = self._rows(epoch, first, end)
        sizes = self.lengths[rows]
        order = np.argsort(-sizes, kind="stable")
        rows, sizes = rows[order], sizes[order]
        wide = self.batch_size * self.world
        sums = np.zeros(self.world, np.int64)
        block: list[list[int]] = []
        for at in range(0, len(rows), wide):
            part = rows[at : at + wide]
            if len(part) < self.world:
                block.append(self._spread(part))
                continue
            room = np.array([len(range(rank, len(part), self.world)) for rank in range(self.world)])
            own: list[int] = []
            for row, size in zip(part, sizes[at : at + wide], strict=True):
                rank = int(np.lexsort((sums, room == 0))[0])
                room[rank] -= 1
                sums[rank] += size
                if rank == self.rank:
                    own.append(int(row))
            block.append(own)
        return block

    def _make_epoch(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_packs)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_packs)
