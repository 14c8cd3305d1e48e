"""One process, one device."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xtuner.checkpoint.dcp import is_dcp
from xtuner.checkpoint.state import load_state, save_state
from xtuner.checkpoint.zero import find_zero
from xtuner.config.spec import RunSpec
from xtuner.dataset.batch import Batch
from xtuner.engine.precision import NOT_FINITE_HELP, Precision
from xtuner.engine.strategy.base import Accept
from xtuner.engine.strategy.world import World
from xtuner.errors import UserError
from xtuner.model.trainable import load_trainable, trainable_state
from xtuner.objective.loss import Loss
from xtuner.objective.protocol import Objective

T = TypeVar("T")


class Single:
    """A `Strategy` for one device."""

    reader = 0
    readers = 1
    all_write = False

    def __init__(
        self, device: torch.device, precision: Precision, world: World | None = None, spec: RunSpec | None = None
    ) -> None:
        """`spec` is the run's; most strategies need nothing of it."""
        self.world = world or World()
        if self.world.size > 1:
            raise UserError(
                f"This was started as {self.world.size} processes, and strategy=single is one.",
                "Start it without torchrun and with NPROC_PER_NODE=1, or leave strategy out.",
            )
        self.device = device
        self.precision = precision
        self.model: nn.Module
        self.optimizer: Optimizer
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.scaled)
        self.keeps_float32 = precision.scaled

    def loading_device(self, quantised: bool) -> torch.device:
        """The device that trains."""
        return self.device

    def place(self, model: nn.Module, optimiser: Callable[[nn.Module], Optimizer]) -> nn.Module:
        """Move the model to the device; weights that are trained with a scaled loss become float32."""
        self.model = model if _is_placed(model, self.device) else model.to(self.device)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.precision.scaled:
            for parameter in self.trained:
                parameter.data = parameter.data.float()
        self.optimizer = optimiser(self.model)
        return self.model

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the precision's format."""
        if not self.precision.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision.compute)

    def cut(self, batch: Batch) -> Batch:
        """Nobody shares it."""
        return batch

    def loss(self, objective: Objective, model: nn.Module, batch: Batch) -> Loss:
        """Call the objective."""
        with self.autocast():
            return objective(model, batch)

    def within(self, function: Callable[[], T]) -> T:
        """Call it."""
        with self.autocast():
            return function()

    def sync(self, last: bool) -> AbstractContextManager[None]:
        """Nothing crosses anything."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient, of the scaled loss for float16."""
        self.scaler.scale(loss).backward()

    def set_lr(self, lr: float) -> None:
        """Tell the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def step(self, max_norm: float | None, accept: Accept | None = None) -> Tensor | None:
        """Clip and step; a float16 step whose gradient overflowed is left out by the scaler."""
        norm = None
        if max_norm is not None or accept is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.trained, math.inf if max_norm is None else max_norm)
        if accept is None or norm is None or self._overflowed(norm) or accept(norm):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.forget()
        return norm

    def _overflowed(self, norm: Tensor) -> bool:
        """Whether the scaler will leave the step out by itself, to try a smaller scale."""
        return self.scaler.is_enabled() and not bool(torch.isfinite(norm))

    def forget(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, path: Path, state: Mapping[str, Any], *, optimizer: bool) -> None:
        """Write one `.pth` file."""
        weights = self.gather()
        for name, tensor in weights.items():
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(f"The weight {name} is not finite, so {path.name} is not written.", NOT_FINITE_HELP)
        content = {**state, "state_dict": weights}
        if optimizer:
            content["optimizer"] = self.optimizer.state_dict()
            if self.scaler.is_enabled():
                content["loss_scaler"] = self.scaler.state_dict()
        save_state(path, content)

    def read(self, path: Path) -> dict[str, Any]:
        """Everything in the file but weights and optimiser."""
        self.check_kind(path)
        return {key: value for key, value in load_state(path).items() if key not in ("state_dict", "optimizer")}

    def check_kind(self, path: Path) -> None:
        """Refuse what another strategy has written, before anything large is loaded.

        Raises:
            UserError: says which one it was.
        """
        if path.is_dir():
            refuse_other(path, "takes files")

    def load(self, path: Path) -> None:
        """Weights, moments and loss scale.

        Raises:
            UserError: the file has other weights than the model, or no optimiser.
        """
        state = load_state(path)
        if "optimizer" not in state:
            raise UserError(
                f"{path} holds weights only (checkpoint.optimizer=false), so nothing can go on from it.",
                f"Start anew from these weights: model.weights={path}",
            )
        load_trainable(self.model, state["state_dict"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(
                f"The optimiser state in {path} is not that of this run: {error}.",
                f"Use the same optim.name, or start anew from the weights: model.weights={path}",
            ) from error
        if "loss_scaler" in state:
            self.scaler.load_state_dict(state["loss_scaler"])

    def gather(self) -> dict[str, Tensor]:
        """Copy the trained weights to the CPU."""
        return {name: tensor.detach().cpu() for name, tensor in trainable_state(self.model).items()}


def refuse_other(path: Path, takes: str) -> NoReturn:
    """Say that a checkpoint is of another strategy than the run, which `takes` something else."""
    if path.is_dir():
        writer = "strategy=fsdp" if is_dcp(path) else "DeepSpeed" if find_zero(path) else ""
        if not writer:
            raise UserError(f"{path} is a folder without a checkpoint in it.", "Give one such as iter_500.pth.")
    else:
        writer = "one process or strategy=ddp, or without its optimiser"
    raise UserError(
        f"{path} was saved by {writer}, and the strategy of this run {takes}.",
        f"Go on with the strategy it was saved with, or start anew from its weights: model.weights={path}",
    )


def _is_placed(model: nn.Module, device: torch.device) -> bool:
    """Whether every parameter is there already: moving quantised modules is refused by some libraries."""
    return all(parameter.device == device for parameter in model.parameters())
