"""Packing never mixes, never cuts, never drops; it is full, fast and decided by the seed."""

import time

import numpy as np
import pytest

from xtuner.dataset.pack import Packs, best_fit, singles


def totals(packs: Packs, lengths: np.ndarray) -> np.ndarray:
    return np.array([lengths[packs[index]].sum() for index in range(len(packs))])


def simple_best_fit(lengths: list[int], max_length: int) -> int:
    """The textbook way: one sample at a time, longest first, into the fullest pack that has room."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(max_length - length)
    return len(rooms)


@pytest.mark.parametrize("seed", range(8))
def test_laws(seed: int) -> None:
    random = np.random.default_rng(seed)
    max_length = int(random.integers(5, 300))
    lengths = random.integers(1, max_length + 1, int(random.integers(1, 600)))
    if seed % 2:
        lengths = np.minimum(lengths, random.integers(1, 9, len(lengths)))  # many short ones
    packs = best_fit(lengths, max_length, seed)
    assert sorted(packs.members.tolist()) == list(range(len(lengths)))  # every sample once
    sizes = totals(packs, lengths)
    assert sizes.max() <= max_length
    assert sizes.min() > 0
    assert len(packs) == simple_best_fit(lengths.tolist(), max_length)
    firsts = [int(packs[index][0]) for index in range(len(packs))]
    assert firsts == sorted(firsts)
    assert all((np.diff(packs[index]) > 0).all() for index in range(len(packs)))


def test_the_course_data() -> None:
    # 7,502 rows of 38 tokens: 53 whole ones in 2,048
    packs = best_fit(np.full(7502, 38), 2048, 0)
    assert len(packs) == 142
    assert {len(packs[index]) for index in range(141)} <= {53, 7502 - 141 * 53}


def test_the_seed_decides_who_shares_a_pack() -> None:
    lengths = np.random.default_rng(0).integers(5, 50, 500)
    one, same, other = (best_fit(lengths, 128, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.members, same.members)
    assert np.array_equal(one.borders, same.borders)
    assert not np.array_equal(one.members, other.members)


def test_a_million_samples_take_seconds_and_packs_are_full() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 1_000_000).astype(int).clip(1, 4096)
    start = time.process_time()
    packs = best_fit(lengths, 4096, 0)
    assert time.process_time() - start < 20  # about 1.5 s on a quiet core
    assert lengths.sum() / (len(packs) * 4096) > 0.99


def test_nothing_and_one() -> None:
    assert len(best_fit(np.array([], int), 10, 0)) == 0
    assert best_fit(np.array([10]), 10, 0)[0].tolist() == [0]
    assert [packs.tolist() for packs in singles(3)] == [[0], [1], [2]]
