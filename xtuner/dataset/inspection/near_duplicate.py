"""Owns the search for rows that say nearly the same: MinHash signatures and locality-sensitive hashing.

One-permutation MinHash (Li, Owen and Zhang 2012) with optimal densification (Shrivastava 2017), in bands (Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3). Deterministic: no random numbers but from fixed seeds.
"""

import tempfile
from collections.abc import Sequence

import numpy as np

SHINGLE = 5
"""Characters that are looked at together: right for Chinese, and for English of the length of an answer."""
BINS = 64
BANDS = 16
SIMILAR = 0.8
"""Share of common shingles (Jaccard) from which on two texts count as nearly the same."""
EMPTY = np.uint32(0xFFFFFFFF)
WINDOW = 1 << 18
"""Characters that are hashed at once; longer texts are taken in parts that share their edges."""
BLOCK = 1 << 16
"""Pairs that are compared at once."""


class NearDuplicates:
    """Collects texts, then finds those that resemble an earlier one.

    Signatures (256 bytes a text) lie in a temporary file; memory holds 8 bytes a text and one band at a time.
    """

    def __init__(self) -> None:
        self.count = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the object, below

    def add(self, texts: Sequence[str]) -> None:
        """Take texts; they are numbered 0, 1, ... in the order in which they come."""
        if texts:
            self._file.write(signatures(texts).tobytes())
            self.count += len(texts)

    def find(self, among: np.ndarray) -> np.ndarray:
        """Return for each of the texts `among` (N,), numbers in ascending order, the first one it resembles, or itself.

        The result (N,) holds numbers of texts too.
        """
        earlier = among.copy()
        if len(among) < 2:
            return earlier
        self._file.flush()
        signed = np.memmap(self._file, np.uint32, "r", shape=(self.count, BINS))
        width = BINS // BANDS
        for band in range(BANDS):
            keys = _mix(_fold(np.asarray(signed[:, band * width : (band + 1) * width])[among]))
            order = np.argsort(keys, kind="stable")  # stable: within a group of equal keys the texts stay in order
            same = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1
            if not len(same):
                continue
            opens = np.ones(len(order), bool)
            opens[same] = False
            first = np.maximum.accumulate(np.where(opens, np.arange(len(order)), 0))
            for other in (first[same], same - 1):
                _compare(signed, among, order[same], order[other], earlier)
        return earlier

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()


def _compare(signed: np.ndarray, among: np.ndarray, later: np.ndarray, before: np.ndarray, earlier: np.ndarray) -> None:
    """Write the pairs (`later`, `before`) that are similar enough into `earlier`."""
    for start in range(0, len(later), BLOCK):
        a, b = later[start : start + BLOCK], before[start : start + BLOCK]
        alike = (signed[among[a]] == signed[among[b]]).mean(1) >= SIMILAR
        np.minimum.at(earlier, a[alike], among[b[alike]])


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Return MinHash signatures (N, BINS) uint32; case and white space make no difference.

    The share of equal places in two signatures estimates the share of common shingles.
    """
    signed = np.full((len(texts), BINS), EMPTY)
    waiting: list[tuple[int, str]] = []
    length = 0
    for number, text in enumerate(texts):
        windows = (text[start : start + WINDOW] for start in range(0, len(text), WINDOW))
        plain = "".join(["".join(window.lower().split()) for window in windows]).ljust(SHINGLE, "\0")
        for start in range(0, len(plain) - SHINGLE + 1, WINDOW):
            part = plain[start : start + WINDOW + SHINGLE - 1]
            if waiting and length + len(part) > 2 * WINDOW:
                _sign(waiting, signed)
                waiting, length = [], 0
            waiting.append((number, part))
            length += len(part)
    if waiting:
        _sign(waiting, signed)
    return _fill(signed)


def _sign(parts: Sequence[tuple[int, str]], signed: np.ndarray) -> None:
    """Lower the signatures `signed` (N, BINS) to those of the shingles in `parts` of texts (number, characters)."""
    codes = np.frombuffer("".join(part for _, part in parts).encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.fromiter((len(part) for _, part in parts), np.int64, len(parts))
    hashes = np.zeros(len(codes) - SHINGLE + 1, np.uint64)
    for place in range(SHINGLE):
        hashes = hashes * np.uint64(0x100000001B3) + codes[place : place + len(hashes)]
    hashes = _mix(hashes)
    part_of = np.repeat(np.arange(len(parts)), lengths)[: len(hashes)]
    inside = np.arange(len(hashes)) + SHINGLE <= np.cumsum(lengths)[part_of]
    hashes = hashes[inside]
    text_of = np.fromiter((number for number, _ in parts), np.int64, len(parts))[part_of[inside]]
    bins = (hashes >> np.uint64(58)).astype(np.int64)
    np.minimum.at(signed.reshape(-1), text_of * BINS + bins, (hashes & np.uint64(0xFFFFFFFE)).astype(np.uint32))


def _fill(signed: np.ndarray) -> np.ndarray:
    """Give empty bins (short texts have few shingles) the value of a full one, chosen alike for all texts."""
    filled = signed.copy()
    random = np.random.default_rng(0)
    step, start = random.integers(0, BINS // 2, BINS) * 2 + 1, random.integers(0, BINS, BINS)
    for attempt in range(BINS):  # odd steps: every bin is tried once
        empty = filled == EMPTY
        if not empty.any():
            break
        filled = np.where(empty, signed[:, (start + attempt * step) % BINS], filled)
    return filled


def _fold(columns: np.ndarray) -> np.ndarray:
    """Make one number (N,) of several (N, W)."""
    key = np.zeros(len(columns), np.uint64)
    for place in range(columns.shape[1]):
        key = _mix(key ^ columns[:, place].astype(np.uint64)) + np.uint64(place)
    return key


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Spread 64-bit numbers evenly (the finaliser of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
