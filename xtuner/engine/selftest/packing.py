"""Law 3: a sample in a pack gets the logits that it gets alone."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from xtuner.config.spec import RunSpec
from xtuner.dataset.collate import collate
from xtuner.dataset.store import Pack
from xtuner.engine.callbacks.paused import paused
from xtuner.engine.run import Run
from xtuner.engine.selftest.measure import Measured, is_exact, open_run
from xtuner.engine.selftest.trajectory import samples_of
from xtuner.engine.step import to_device
from xtuner.model.head import decode, find_head

LAW = "packed equals alone"
MOST_SEGMENTS = 16
EXACT, NOISE = 1e-4, 5e-2
"""Of the logits' spread: fp32; half precision, where kernels for other lengths round otherwise."""


def measure_packing(spec: RunSpec, folder: Path) -> Iterator[tuple[str, Measured | None]]:
    """Compare the logits of every segment of a pack with those of the segment alone; yields as `measure_trajectory`."""
    yield "the logits of every sample", None
    with open_run(spec, folder) as run, paused(run.model):
        pack = fullest_pack(run)
        samples = samples_of(pack)
        packed = _hidden(run, samples).split(pack.lengths)
        head = find_head(run.model)
        difference = 0.0
        for together, sample in zip(packed, samples, strict=True):
            found = run.strategy.within(partial(head, together)).float()
            expected = run.strategy.within(partial(head, _hidden(run, [sample]))).float()
            spread = expected - expected.mean(-1, keepdim=True)
            difference = max(difference, float((found - expected).norm() / spread.norm().clamp(min=1e-30)))
        limit = EXACT if is_exact(run) else NOISE
        yield "", Measured(LAW, f"{len(samples)} samples of {sum(pack.lengths)} tokens", difference, limit)


def fullest_pack(run: Run) -> Pack:
    """Return the pack with the most samples; where every row is one sample, several of them together."""
    packs = [run.data.train[index] for index in range(min(len(run.data.train), 64))]
    best = max(packs, key=lambda pack: len(pack.lengths))
    samples = samples_of(best) if len(best.lengths) > 1 else packs
    chosen = samples[:MOST_SEGMENTS]
    batch = collate(chosen, range(len(chosen)))
    ids = batch.input_ids[0].numpy()
    return Pack(ids, ids, [length for sample in chosen for length in sample.lengths])


def _hidden(run: Run, samples: list[Pack]) -> Tensor:
    batch = to_device(collate(samples, range(len(samples))), run.strategy.device)
    with torch.no_grad():
        return run.strategy.within(lambda: decode(run.model, batch).hidden[0])
