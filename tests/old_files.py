"""Writes checkpoints as XTuner 0.1.x, mmengine and DeepSpeed left them, with their objects inside.

The classes exist only while a file is written, under the names that the real ones have; nothing can import them when it
is read. Layouts: the formats of mmengine's runner and DeepSpeed's engine (see the docstring of `checkpoint/zero.py`).
"""

import enum
import math
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class HistoryBuffer:
    """Values of a logged number, as mmengine keeps them: its functions go into the file too."""

    def __init__(self, values: Sequence[float]) -> None:
        self.max_length = 1000000
        self._log_history = np.array(values)
        self._count_history = np.ones(len(values), dtype=np.int64)
        self._statistics_methods = {"mean": HistoryBuffer.mean, "current": HistoryBuffer.current}

    def mean(self) -> float:
        return float(self._log_history.mean())

    def current(self) -> float:
        return float(self._log_history[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "statistics_methods": self._statistics_methods}


class ConfigDict(dict[str, Any]):
    """A dictionary of a class of its own."""


class ZeroStageEnum(int, enum.Enum):
    """DeepSpeed's stages."""

    disabled, optimizer_states, gradients, weights = range(4)


class DynamicLossScaler:
    """The state of fp16 training."""

    def __init__(self) -> None:
        self.cur_scale, self.dtype = 65536, torch.float16


@dataclass
class fragment_address:
    """Where a weight lies in a partition."""

    numel: int
    start: int


NAMES: Mapping[type, str] = {
    HistoryBuffer: "mmengine.logging.history_buffer",
    ConfigDict: "mmengine.config.config",
    ZeroStageEnum: "deepspeed.runtime.zero.config",
    DynamicLossScaler: "deepspeed.runtime.fp16.loss_scaler",
    fragment_address: "deepspeed.utils.tensor_fragment",
}


@contextmanager
def foreign_modules() -> Iterator[None]:
    """Let the classes above be those of mmengine and DeepSpeed."""
    here = __name__
    try:
        for kind, name in NAMES.items():
            kind.__module__ = name
            parts = name.split(".")
            for length in range(1, len(parts) + 1):
                module = ".".join(parts[:length])
                sys.modules.setdefault(module, types.ModuleType(module))
            setattr(sys.modules[name], kind.__name__, kind)
        yield
    finally:
        for kind in NAMES:
            kind.__module__ = here
        for module in [name for name in sys.modules if name.split(".")[0] in ("mmengine", "deepspeed")]:
            del sys.modules[module]


def client_state(iteration: int) -> dict[str, Any]:
    """What mmengine's runner saves beside weights."""
    scalars = OrderedDict({"train/loss": HistoryBuffer([2.5, 2.0, 1.5]), "train/lr": HistoryBuffer([1e-4, 1e-4, 9e-5])})
    return {
        "meta": {
            **{"epoch": 0, "iter": iteration, "cfg": "max_epochs = 3\n", "seed": 42, "mmengine_version": "0.10.3"},
            "dataset_meta": ConfigDict(length=7),
            "experiment_name": f"tiny_2024_{iteration}",
        },
        "message_hub": {
            "log_scalars": scalars,
            "runtime_info": OrderedDict(iter=iteration, loss=np.float64(1.5), where=Path("/data"), kinds={"a", "b"}),
            "resumed_keys": OrderedDict(),
        },
        "param_schedulers": [{"last_step": iteration, "_last_value": [np.float64(1e-4)]}],
    }


def write_pth(path: Path, state: Mapping[str, Tensor], *, zipped: bool = True) -> Path:
    """Write `iter_N.pth` of a run without DeepSpeed."""
    weights = OrderedDict(state)
    weights._metadata = OrderedDict()  # type: ignore[attr-defined]
    moments = {index: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)} for index in range(3)}
    optimizer = {"state": moments, "param_groups": [{"lr": np.float64(1e-4), "betas": (0.9, 0.999)}]}
    with foreign_modules():
        content = {**client_state(3), "state_dict": weights, "optimizer": optimizer}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def write_zero(
    folder: Path,
    groups: Sequence[Mapping[str, Tensor]],
    *,
    world: int,
    stage: int,
    prefix: str = "",
    shared: Mapping[str, str] | None = None,
) -> Path:
    """Write `iter_N.pth/` of a run with DeepSpeed, its weights (fp32) in groups of the optimizer."""
    folder.mkdir(parents=True)
    partition: Callable[[Sequence[Mapping[str, Tensor]], int], list[list[Tensor]]] = _rows_3 if stage == 3 else _rows_12
    weights = {name: tensor for group in groups for name, tensor in group.items()}
    with foreign_modules():
        model = {
            **client_state(3),
            "buffer_names": ["llm.rope"],
            "optimizer": None,
            "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in groups],
            "frozen_param_shapes": OrderedDict({"llm.frozen": torch.Size([2])}),
            "shared_params": dict(shared or {}),
            "frozen_param_fragments": OrderedDict({"llm.frozen": torch.ones(2 if stage < 3 else 1)}),
            **{"lr_scheduler": None, "ds_version": "0.14.4", "dp_world_size": world, "global_steps": 3},
        }
        for rank in range(world if stage == 3 else 1):
            name = f"zero_pp_rank_{rank}_mp_rank_00" if stage == 3 else "mp_rank_00"
            module = {key: torch.empty(0) if stage == 3 else tensor.half() for key, tensor in weights.items()}
            module["llm.rope"] = torch.ones(3)
            torch.save({**model, "module": OrderedDict(module)}, folder / f"{name}_model_states.pt")
        for rank, rows in enumerate(partition(groups, world)):
            state: dict[str, Any] = {
                "loss_scaler": DynamicLossScaler(),
                "zero_stage": ZeroStageEnum(stage),
                "partition_count": world if stage == 3 else [world] * len(groups),
                "ds_version": "0.14.4",
            }
            if stage == 3:
                moments = {"state": {}, "param_groups": []}
                state |= {"optimizer_state_dict": moments, "fp32_flat_groups": rows}
            else:
                state |= {
                    "base_optimizer_state": {"state": {0: {"step": 3, "exp_avg": torch.zeros_like(rows[0])}}},
                    "single_partition_of_fp32_groups": rows,
                    "param_slice_mappings": [OrderedDict(w=fragment_address(1, 0))],
                }
            content = {"optimizer_state_dict": state, "ds_config": {}, "ds_version": "0.14.4"}
            torch.save(content, folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


def _rows_12(groups: Sequence[Mapping[str, Tensor]], world: int) -> list[list[Tensor]]:
    """ZeRO-1 and 2: one row per group, padded to a multiple of 2 x world; the last rank saves no padding."""
    ranks: list[list[Tensor]] = [[] for _ in range(world)]
    for group in groups:
        flat = torch.cat([tensor.flatten() for tensor in group.values()])
        align = 2 * world
        padding = math.ceil(flat.numel() / align) * align - flat.numel()
        parts = torch.cat([flat, torch.zeros(padding)]).chunk(world)
        for rank, part in enumerate(parts):
            last = rank == world - 1
            ranks[rank].append(part[:-padding].clone() if last and padding else part.clone())
    return ranks


def _rows_3(groups: Sequence[Mapping[str, Tensor]], world: int) -> list[list[Tensor]]:
    """ZeRO-3: every weight padded and cut on its own; a rank's parts end to end, in two tensors (sub-groups)."""
    ranks: list[list[Tensor]] = []
    tensors = [tensor.flatten() for group in groups for tensor in group.values()]
    for rank in range(world):
        parts = []
        for flat in tensors:
            length = math.ceil(flat.numel() / world)
            padded = torch.cat([flat, torch.full((length * world - flat.numel(),), -9.0)])
            parts.append(padded[rank * length : (rank + 1) * length])
        ranks.append([torch.cat(parts[:2]), torch.cat(parts[2:])] if len(parts) > 2 else [torch.cat(parts)])
    return ranks
