"""All laws, one after another, for the model and data of a run."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from xtuner.checkpoint.hub import find_folder
from xtuner.checkpoint.shards import ShardReader
from xtuner.config.spec import LoraSpec, RunSpec
from xtuner.engine.selftest.fast_path import measure_fast_path
from xtuner.engine.selftest.measure import Measured, bare_spec, with_model
from xtuner.engine.selftest.packing import measure_packing
from xtuner.engine.selftest.resuming import measure_resuming
from xtuner.engine.selftest.trajectory import STEPS, measure_trajectory

FULL_LR = 2e-5
"""The learning rate when all weights are trained: that of adapters would blow the losses up, and rounding with them."""
BYTES_PER_WEIGHT = 20
"""All weights trained in fp32: weight, gradient, two moments, and some for the activations."""


def measure_laws(spec: RunSpec, folder: Path, *, steps: int = STEPS) -> Iterator[tuple[str, Measured | str | None]]:
    """Measure every law on the model and data of `spec`, with runs in `folder`.

    Yields what is going to be measured with None; then a `Measured`, or a sentence on why it was not.

    Raises:
        UserError: model or data cannot be used; says why.
    """
    bare = bare_spec(spec)
    adapted = bare if bare.model.lora is not None else with_model(bare, lora=LoraSpec())
    yield from measure_trajectory(adapted, folder / "lora", steps=steps)
    full = with_model(bare, lora=None, quant=None, adapter=None, host_embedding=False)
    full = full.model_copy(update={"optim": full.optim.model_copy(update={"lr": min(full.optim.lr, FULL_LR)})})
    needed, free = BYTES_PER_WEIGHT * count_weights(bare.model.path), free_bytes()
    if needed <= free:
        yield from measure_trajectory(full, folder / "full", steps=steps)
    else:
        need, have = needed / 2**30, free / 2**30
        yield "", f"Not measured: all weights (this takes about {need:,.0f} GiB of memory, {have:,.0f} are free)."
    yield from measure_resuming(bare, folder / "resume")
    yield from measure_packing(adapted, folder / "packing")
    yield from measure_fast_path(adapted, folder / "fast")


def count_weights(path: str) -> int:
    """Return how many numbers the files of a model hold."""
    reader = ShardReader(find_folder(path, weights=True))
    return sum(torch.Size(reader.shape(name)).numel() for name in reader.names())


def free_bytes() -> int:
    """Return the free memory: of the card, or of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    names = os.sysconf_names if hasattr(os, "sysconf") else {}
    if "SC_AVPHYS_PAGES" not in names:
        return 2**62  # a system that does not say
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
