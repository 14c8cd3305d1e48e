"""Owns the order in which packs are trained on."""

from functools import lru_cache

import numpy as np


class Order:
    """Which packs a rank sees at which iteration: a pure function, so that resuming needs no state.

    Every epoch each pack comes once, in a new order when `shuffle`. The last iteration of an epoch holds what is left,
    spread over the ranks; only when fewer packs than ranks are left, some are repeated so that no rank is idle.
    """

    def __init__(
        self, num_packs: int, batch_size: int, shuffle: bool, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        assert num_packs > 0
        assert batch_size > 0
        assert 0 <= rank < world
        self.num_packs, self.batch_size, self.shuffle, self.seed = num_packs, batch_size, shuffle, seed
        self.rank, self.world = rank, world
        self.iters_per_epoch = -(-num_packs // (batch_size * world))
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def rows(self, iteration: int) -> list[int]:
        """Return the packs of this rank at `iteration`, counted from 0 over all epochs."""
        epoch, step = divmod(iteration, self.iters_per_epoch)
        wide = self.batch_size * self.world
        rows = self._epoch(epoch)[step * wide : (step + 1) * wide]
        if len(rows) < self.world:
            rows = np.resize(rows, self.world)
        return [int(row) for row in rows[self.rank :: self.world]]

    def _make_epoch(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_packs)
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_packs)
