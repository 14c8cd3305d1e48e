"""Reads the folders that DeepSpeed writes with ZeRO 1, 2 and 3, of any number of processes, without DeepSpeed.

A folder holds `mp_rank_00_model_states.pt` (ZeRO-3: one `zero_pp_rank_R_mp_rank_00_model_states.pt` per process), which
says how the trained weights are called and shaped, and one `[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt` per
process with its part of the weights in fp32. The layout is that of https://github.com/deepspeedai/DeepSpeed.

- ZeRO-1 and 2: the weights of a group are laid end to end, padded to a multiple of 2 x processes and cut into equal
  parts; the padding at the end is left out again when they are saved.
- ZeRO-3: every weight on its own is padded to a multiple of the processes and cut into equal parts; a process lays
  its parts of all weights end to end, and this row may lie in several tensors.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtuner.checkpoint.pth import load_pth
from xtuner.checkpoint.weights import LazyWeights
from xtuner.errors import UserError

MODEL_FILE = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
PART_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_?optim_states\.pt")
LATEST = "latest"
"""A text file beside the folders of several checkpoints: the name of the newest one."""
PARTS_12 = "single_partition_of_fp32_groups"
PARTS_3 = "fp32_flat_groups"
OF_DEEPSPEED = {
    *("module", "optimizer", "lr_scheduler", "param_shapes", "buffer_names", "shared_params", "ds_config"),
    *("frozen_param_shapes", "frozen_param_fragments", "random_ltd", "data_sampler", "universal_checkpoint_info"),
    *("sparse_tensor_module_names", "dp_world_size", "mp_world_size", "skipped_steps", "global_steps"),
    *("global_samples", "ds_version"),
}
"""Keys of model_states that DeepSpeed writes; others are those of the program that trained."""


def find_zero(folder: Path) -> Path | None:
    """Return the ZeRO folder that a folder is, or whose name stands in `latest` inside it; None: it is something else.

    Raises:
        UserError: `latest` names a folder that is not there.
    """
    if any(MODEL_FILE.fullmatch(file.name) or PART_FILE.fullmatch(file.name) for file in folder.iterdir()):
        return folder
    if not (folder / LATEST).is_file():
        return None
    name = (folder / LATEST).read_text("utf-8", errors="replace").strip()
    if Path(name).name != name or not (folder / name).is_dir():
        raise UserError(f"{folder / LATEST} names {name}, which is not there.", "Give the folder of a checkpoint.")
    return find_zero(folder / name)


def load_zero(folder: Path) -> dict[str, Any]:
    """Return what a ZeRO folder holds: `state_dict`, the trained weights, each put together when it is asked for, and
    what the program that trained put beside them (`meta`, ...). Frozen weights and buffers are left out.

    Weights are fp32; where only the 16-bit model was saved (no optimizer), they are 16-bit.
    Memory: the weights handed out; the files are mapped.

    Raises:
        UserError: a file is missing, cut short, of another run, or of a model that was split across cards.
    """
    files = sorted(folder.iterdir())
    named = [(file, found) for file in files if (found := MODEL_FILE.fullmatch(file.name))]
    parted = [(file, found) for file in files if (found := PART_FILE.fullmatch(file.name))]
    models = {int(found[1] or 0): file for file, found in named}
    parts = {int(found[1]): file for file, found in parted}
    split = {found[2] for _, found in named + parted}
    if len(split) > 1:
        raise UserError(
            f"{folder} is of a model that was split across {len(split)} cards (mp_rank).",
            "Make one model of it with DeepSpeed first.",
        )
    if 0 not in models:
        raise UserError(f"{folder} lacks the model_states file of rank 0.", "Copy the whole checkpoint folder.")
    model = _read(models[0])
    content = {key: value for key, value in model.items() if key not in OF_DEEPSPEED}
    module = model.get("module")
    if not parts:
        if any(found[1] for _, found in named):  # ZeRO-3 keeps nothing else of a weight
            raise UserError(f"{folder} lacks the optim_states files.", "Copy the whole checkpoint folder.")
        return {**content, "state_dict": module}
    shapes = [_shapes(group, models[0]) for group in _list(model.get("param_shapes"), models[0])]
    read = {rank: _part(_read(file), file) for rank, file in parts.items()}
    world = max(part.world for part in read.values())
    missing = sorted(set(range(world)) - set(read))
    if missing:
        raise UserError(
            f"{folder} lacks the optim_states file of {len(missing)} of {world} ranks, the first is {missing[0]}.",
            "Copy the whole checkpoint folder.",
        )
    different = {part.world for part in read.values()} | {len(read)}
    if len(different) > 1 or len({part.stage3 for part in read.values()}) > 1:
        raise UserError(
            f"{folder} holds files of different runs, of {' and '.join(map(str, sorted(different)))} ranks.",
            "Delete the files of the older run, or give another checkpoint.",
        )
    ordered = [read[rank] for rank in range(world)]
    place = _place_3 if ordered[0].stage3 else _place_12
    makers = {name: weight.build for name, weight in place(folder, shapes, ordered).items()}
    shared = _mapping(model.get("shared_params") or {}, models[0])
    makers |= {name: makers[other] for name, other in shared.items() if other in makers}
    return {**content, "state_dict": LazyWeights(makers)}


@dataclass(frozen=True)
class _Part:
    """What one process saved: its rows of numbers, one for each group (ZeRO-1, 2) or one for all weights (ZeRO-3)."""

    world: int
    stage3: bool
    groups: list[Tensor]


@dataclass(frozen=True)
class _Weight:
    """Where a weight is: slices that make it, laid end to end, and its shape; what is left over is padding."""

    shape: tuple[int, ...]
    slices: list[tuple[Tensor, int, int]]
    """(row of numbers, first, number of numbers)."""

    def build(self) -> Tensor:
        pieces = [row[start : start + length] for row, start, length in self.slices]
        whole = torch.cat(pieces) if len(pieces) != 1 else pieces[0].clone()
        return whole[: math.prod(self.shape)].view(self.shape)


def _place_12(folder: Path, shapes: Sequence[Mapping[str, tuple[int, ...]]], parts: list[_Part]) -> dict[str, _Weight]:
    """ZeRO-1 and 2: each group is one row, cut into parts of which the last are shorter."""
    if any(len(part.groups) != len(shapes) for part in parts):
        raise _unfit(folder)
    weights: dict[str, _Weight] = {}
    align = 2 * len(parts)
    for index, group in enumerate(shapes):
        rows = [part.groups[index] for part in parts]
        ends = list(accumulate(row.numel() for row in rows))
        wanted = sum(math.prod(shape) for shape in group.values())
        if ends[-1] < wanted or math.ceil(ends[-1] / align) != math.ceil(wanted / align):
            raise _unfit(folder)
        start = 0
        for name, shape in group.items():
            weights[name] = _Weight(shape, _cut(rows, start, math.prod(shape)))
            start += math.prod(shape)
    return weights


def _place_3(folder: Path, shapes: Sequence[Mapping[str, tuple[int, ...]]], parts: list[_Part]) -> dict[str, _Weight]:
    """ZeRO-3: of each weight every process has an equal part, at the same place of its row."""
    weights: dict[str, _Weight] = {}
    start, world = 0, len(parts)
    for name, shape in (item for group in shapes for item in group.items()):
        length = math.ceil(math.prod(shape) / world)
        weights[name] = _Weight(shape, [piece for part in parts for piece in _cut(part.groups, start, length)])
        start += length
    if any(sum(row.numel() for row in part.groups) != start for part in parts):
        raise _unfit(folder)
    return weights


def _cut(rows: Sequence[Tensor], start: int, length: int) -> list[tuple[Tensor, int, int]]:
    """Return the slices of `rows`, laid end to end, that make up `length` numbers from `start`."""
    slices: list[tuple[Tensor, int, int]] = []
    for row in rows:
        first, last = max(start, 0), min(start + length, row.numel())
        if first < last or (length == 0 and not slices):
            slices.append((row, first, max(last - first, 0)))
        start -= row.numel()
    return slices


def _read(file: Path) -> Mapping[str, Any]:
    try:
        return _mapping(load_pth(file), file)
    except (ValueError, RuntimeError, EOFError) as error:
        raise _broken(file) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error


def _part(content: Mapping[str, Any], file: Path) -> _Part:
    state = _mapping(content.get("optimizer_state_dict"), file)
    count = state.get("partition_count")
    counts = count if isinstance(count, list) else [count]
    stage3 = PARTS_3 in state
    groups = state.get(PARTS_3 if stage3 else PARTS_12)
    groups = groups if isinstance(groups, list) else [groups]
    if not counts or not all(isinstance(number, int) and 0 < number < 2**20 for number in counts):
        raise _broken(file)
    if not all(isinstance(row, Tensor) and row.ndim == 1 for row in groups):
        raise _broken(file)
    return _Part(max(counts), stage3, groups)


def _shapes(group: Any, file: Path) -> dict[str, tuple[int, ...]]:
    shapes = {str(name): shape for name, shape in _mapping(group, file).items()}
    if not all(
        isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape) for shape in shapes.values()
    ):
        raise _broken(file)
    return shapes


def _mapping(value: Any, file: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _broken(file)
    return value


def _list(value: Any, file: Path) -> list[Any]:
    if not isinstance(value, list):
        raise _broken(file)
    return value


def _broken(file: Path) -> UserError:
    return UserError(
        f"{file} is cut short, or is no file of DeepSpeed.", "Copy it again, or use an earlier checkpoint."
    )


def _unfit(folder: Path) -> UserError:
    return UserError(
        f"The files in {folder} do not fit each other: the ranks hold other numbers of weights than rank 0 describes.",
        "Copy the whole checkpoint folder of one run.",
    )
