"""One process, one device."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xtuner.checkpoint.state import load_state, save_state
from xtuner.engine.precision import NOT_FINITE_HELP, Precision
from xtuner.errors import UserError
from xtuner.model.trainable import load_trainable, trainable_state


class Single:
    """A `Strategy` for one device."""

    rank = 0
    world = 1

    def __init__(self, device: torch.device, precision: Precision) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                f"This was started as {os.environ['WORLD_SIZE']} processes, and strategy=single is one.",
                "Start it without torchrun, and with NPROC_PER_NODE=1.",
            )
        self.device = device
        self.precision = precision
        self.model: nn.Module
        self.optimizer: Optimizer
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.scaled)

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

    def sync(self, last: bool) -> AbstractContextManager[None]:
        """Nothing crosses anything."""
        return nullcontext()

    def total(self, count: int) -> int:
        """There is one rank."""
        return count

    def backward(self, loss: Tensor) -> None:
        """Add the gradient, of the scaled loss for float16."""
        self.scaler.scale(loss).backward()

    def step(self, lr: float, max_norm: float | None) -> Tensor | None:
        """Clip and step; a float16 step whose gradient overflowed is left out by the scaler."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if max_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.trained, max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.forget()
        return norm

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
        return {key: value for key, value in load_state(path).items() if key not in ("state_dict", "optimizer")}

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


def _is_placed(model: nn.Module, device: torch.device) -> bool:
    """Whether every parameter is there already: moving quantised modules is refused by some libraries."""
    return all(parameter.device == device for parameter in model.parameters())
