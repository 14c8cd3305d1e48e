"""How much a run does: tokens of a micro-batch, iterations (no torch)."""

import math
from dataclasses import dataclass

from xtuner.config.spec import RunSpec

BYTES_PER_TOKEN = 3.5
"""Of data files: English has 4 to 4.5 with the words of JSON around it, Chinese 2.5 to 3."""


@dataclass(frozen=True)
class Work:
    """`tokens` of the largest micro-batch, of which `segment` see one another."""

    tokens: int
    segment: int
    iterations: int | None = None
    """None: nobody knows before the data is read."""
    is_exact: bool = False
    """Whether the data has been read."""
    alike: bool = False
    """Whether all segments have one length, as data have not: some cards have faster kernels for that."""


def row_of(spec: RunSpec) -> tuple[int, int]:
    """Return the tokens of the largest micro-batch that a spec allows a card, and of its longest segment."""
    longest = spec.data.max_length
    pack = max(longest, spec.data.pack_length or 0) if spec.data.pack else longest
    if spec.objective.name in ("dpo", "orpo", "reward"):  # pairs of answers are never parted
        pack = max(pack, 2 * longest)
    return math.ceil(spec.loop.batch_size * pack / sequence_parts(spec)), longest


def estimate_work(spec: RunSpec, cards: int = 1) -> Work:
    """Say what each of `cards` cards will do before data is read; iterations from the sizes of files that are here."""
    tokens, segment = row_of(spec)
    return Work(tokens, segment, _iterations(spec, tokens * cards))


def sequence_parts(spec: RunSpec) -> int:
    """Return how many cards share each row."""
    size = spec.strategy.options.get("sequence_parallel_size", 1)
    return size if isinstance(size, int) and size > 0 else 1


def _iterations(spec: RunSpec, tokens: int) -> int | None:
    if spec.loop.max_iters is not None:
        return spec.loop.max_iters
    if not spec.data.pack:
        return None
    from xtuner.dataset.file import find_files

    sizes = [(find_files(source), source) for source in spec.data.train]
    if any(found is None or source.limit for found, source in sizes):
        return None
    read = sum(found.num_bytes * source.repeat for found, source in sizes if found is not None)
    return max(1, int(math.ceil(read / BYTES_PER_TOKEN / tokens) * spec.loop.epochs))
