"""A model and an objective small enough to compute by hand."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xtuner.checkpoint.run_record import RunRecord
from xtuner.config.spec import RunSpec
from xtuner.dataset.batch import IGNORE, Batch
from xtuner.dataset.sampler import Order
from xtuner.dataset.store import Pack
from xtuner.engine.build import count_iters
from xtuner.engine.callbacks.checkpoint import Checkpoint
from xtuner.engine.callbacks.data_info import DataInfo
from xtuner.engine.callbacks.progress import ProgressLog
from xtuner.engine.callbacks.validation import Validation
from xtuner.engine.metrics import Metrics
from xtuner.engine.optim import build_optimiser
from xtuner.engine.precision import Precision, find_device
from xtuner.engine.run import Run
from xtuner.engine.schedule import build_schedule
from xtuner.engine.spike import SpikeGuard
from xtuner.engine.strategy.single import Single
from xtuner.engine.workdir import WorkDir
from xtuner.objective.loss import Loss
from xtuner.ops.packing import Packing

VOCAB = 11


class TinyModel(nn.Module):
    """Says the next token from this one; dropout makes it depend on random numbers."""

    def __init__(self, dropout: float = 0.0, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.embedding(ids))))

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding


class Next:
    """Summed cross entropy of the next token."""

    def count(self, batch: Batch) -> Tensor:
        return (batch.labels != IGNORE).sum()

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        logits = model(batch.input_ids)[0].float()
        total = nn.functional.cross_entropy(logits, batch.labels[0], ignore_index=IGNORE, reduction="sum")
        right = (logits.argmax(-1) == batch.labels[0]).sum()
        return Loss(total, self.count(batch), {"right": right})


def make_batch(segments: list[list[int]], learned_from: int = 0, rows: tuple[int, ...] = ()) -> Batch:
    """Make a batch of token lists; tokens before `learned_from` are not learned."""
    ids, labels, positions = [], [], []
    for segment in segments:
        ids += segment
        labels += [x if i + 1 >= learned_from else IGNORE for i, x in enumerate(segment[1:])] + [IGNORE]
        positions += range(len(segment))
    tensors = (torch.tensor([values]) for values in (ids, labels, positions))
    return Batch(*tensors, packing=Packing.from_lengths([len(s) for s in segments]), rows=rows)


def make_segments(count: int, seed: int = 0) -> list[list[int]]:
    """Make token lists of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (count,), generator=generator).tolist()
    return [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]


class Packs(list[Pack]):
    """A data set that says where its packs come from."""

    def origin(self, index: int) -> str:
        return f"x.json, rows {2 * index + 1}, {2 * index + 2}"


class Letters:
    """A tokenizer whose tokens are the letters a, b, c, ..."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + token) for token in ids)


def make_run(
    folder: Path,
    *,
    module: nn.Module | None = None,
    num_packs: int = 6,
    validation: int = 0,
    precision: Precision | None = None,
    **parts,
) -> Run:
    """Make a run of the tiny model over packs of two samples, as `build_run` does of real parts.

    On the CPU, or with a `precision` on the card.
    """
    spec = RunSpec.model_validate({"model": {"path": "tiny"}, "data": {"train": "x.json"}, **parts})
    packs = [
        Pack(np.array(first + second), np.array(first + second), [len(first), len(second)])
        for first, second in zip(make_segments(num_packs), make_segments(num_packs, seed=1), strict=True)
    ]
    data: Any = SimpleNamespace(
        train=Packs(packs), validation=packs[:validation] or None, fingerprint="f", template=None, report=None
    )
    torch.manual_seed(spec.seed)
    device = find_device() if precision else torch.device("cpu")
    strategy = Single(device, precision or Precision(torch.float32, torch.float32, ""))
    model = strategy.place(module or TinyModel(dropout=0.2), lambda placed: build_optimiser(spec.optim, placed))
    order = Order(num_packs, spec.loop.batch_size, spec.data.shuffle, spec.seed)
    num_iters = count_iters(spec, order.iters_per_epoch)
    return Run(
        spec=spec,
        name="tiny",
        seed=spec.seed,
        tokenizer=Letters(),
        data=data,
        objective=Next(),
        strategy=strategy,
        model=model,
        order=order,
        schedule=build_schedule(spec.schedule, spec.optim.lr, num_iters),
        num_iters=num_iters,
        metrics=Metrics(
            device,
            spec.loop.log_every,
            spec.loop.accumulate,
            check_loss=not spec.loop.skip_spikes,
            check_norm=not spec.loop.skip_spikes and not strategy.scaler.is_enabled(),
        ),
        spikes=SpikeGuard() if spec.loop.skip_spikes else None,
        work=WorkDir(folder, "tiny.yaml", "# tiny\n"),
        record=RunRecord(spec.model_dump(mode="json")),
        callbacks=[DataInfo(), ProgressLog(live=False), Checkpoint(), Validation()],
    )


def read_scalars(run: Run, *names: str) -> list[tuple[float, ...]]:
    """Return the named scalars of all log lines of a run that have them."""
    lines = [json.loads(line) for line in (run.work.visual / "scalars.json").read_text().splitlines()]
    return [tuple(line[name] for name in names) for line in lines if all(name in line for name in names)]
