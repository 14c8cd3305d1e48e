"""Checkpoints of sharded weights: a folder of `torch.distributed.checkpoint`, which any number of ranks can read.

Written by torch, read by our own reader, since torch's runs what the folder's pickles say.
"""

import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from xtuner.checkpoint.atomic import ASIDE, put_in_place
from xtuner.checkpoint.dcp import load_rows
from xtuner.checkpoint.folder import writing
from xtuner.engine.strategy.world import World
from xtuner.errors import UserError
from xtuner.model.trainable import PREFIX

WEIGHTS, MOMENTS = "state_dict", "optimizer"


def save_sharded(
    path: Path, state: Mapping[str, Any], weights: Mapping[str, Tensor], moments: Mapping[str, Any], world: World
) -> None:
    """Write `path`, whole or not at all; all ranks call it. What is in `state` is written as JSON texts.

    Raises:
        UserError: the disk is full or the folder cannot be written; what was at `path` before is intact.
    """
    aside = path.with_name(f".{path.name}{ASIDE}")

    def begin() -> None:
        with writing(path):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()

    def publish() -> None:
        with writing(path):
            put_in_place(aside, path)

    world.first(begin)
    content: dict[str, Any] = {key: json.dumps(value) for key, value in state.items()}
    content[WEIGHTS] = dict(weights)
    if moments:
        content[MOMENTS] = moments
    try:
        dcp.save(content, storage_writer=dcp.FileSystemWriter(aside), process_group=world.messages())
    except CheckpointException as error:
        shutil.rmtree(aside, ignore_errors=True)
        rank, (reason, _) = next(iter(error.failures.items()), (0, (error, None)))
        # torch's writer of files says only that a file is shorter than it should be
        full = "inline_container" in str(reason) or getattr(reason, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        what = "The disk is full" if full else str(reason)
        raise UserError(
            f"{path} cannot be written by rank {rank}: {what}. Earlier checkpoints are intact.",
            "Free some space, or write elsewhere.",
        ) from error
    world.first(publish)


def decode_state(content: Mapping[str, Any]) -> dict[str, Any]:
    """Undo the texts."""
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in content.items()}


@torch.no_grad()
def load_sharded(path: Path, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, world: World) -> None:
    """Fill the shards of `parameters` and the moments of `optimizer`; each rank reads only what it needs.

    Raises:
        UserError: cut short, without moments, or of other weights.
    """
    stored = load_rows(path)
    if not any(key[0] == MOMENTS for key in stored):
        raise UserError(
            f"{path} holds weights only (checkpoint.optimizer=false), so nothing can go on from it.",
            f"Start anew from these weights: model.weights={path}",
        )
    saved = {key[1] for key in stored if key[0] == WEIGHTS}
    different = saved ^ {PREFIX + name for name in parameters}
    if different:
        raise UserError(
            f"The weights in {path} are not those of this run, for example {sorted(different)[0]}.",
            "Use the base model and the adapter settings that they were trained with.",
        )
    for name, parameter in parameters.items():
        first, end = _own_rows(parameter, world)
        _local(parameter).copy_(stored[WEIGHTS, PREFIX + name](first, end))
        state = optimizer.state[parameter]
        for key, read in stored.items():
            if key[0] != MOMENTS or key[1] != name:
                continue
            state[key[2]] = _like(parameter, read, first, end)


def _like(parameter: nn.Parameter, read: Any, first: int, end: int) -> Tensor:
    """Read a moment: sharded as its weight, or a scalar."""
    rows: Tensor = read(first, end)
    if rows.ndim == 0:
        return rows.to(parameter.device)
    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        rows.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _own_rows(parameter: nn.Parameter, world: World) -> tuple[int, int]:
    """Return which rows of a weight are this rank's: equal parts, the last ones shorter."""
    rows = -(-parameter.shape[0] // world.size)
    first = min(world.rank * rows, parameter.shape[0])
    return first, min(first + rows, parameter.shape[0])


def _local(parameter: nn.Parameter) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
