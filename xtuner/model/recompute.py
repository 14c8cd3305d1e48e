"""What decoder layers keep for the backward pass, and where: on the card, or on the host."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

LEAST_BYTES = 2**20
"""Smaller tensors stay on the card."""


def decoder_layers(model: torch.nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the layers that can recompute their activations, in order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def set_recompute(model: PreTrainedModel, recompute: str | int) -> None:
    """Recompute activations in the backward pass (https://arxiv.org/abs/1604.06174) as `ModelSpec.recompute` says.

    "none"; "layers" ("auto" too, when nobody has planned): every layer keeps its input only; a number: so many layers
    do, the others keep everything; "offload": every layer does, and its input waits in pinned host memory.
    """
    if recompute == "none":
        return
    # transformers renamed the method in 5.23
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if isinstance(recompute, int):
        for layer in decoder_layers(model)[recompute:]:
            layer.gradient_checkpointing = False
    elif recompute == "offload":
        _add_offload(getattr(model, model.base_model_prefix))


def _add_offload(decoder: torch.nn.Module) -> None:
    """Let `decoder` keep what it saves for the backward pass on the host, whenever it runs."""
    running: list[HostStore] = []

    def before(module: torch.nn.Module, arguments: Any) -> None:
        running.append(HostStore())
        running[-1].__enter__()

    def after(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)

    decoder.register_forward_pre_hook(before)
    decoder.register_forward_hook(after, always_call=True)


class HostStore(saved_tensors_hooks):
    """While entered, large activations that autograd saves go to pinned host memory, on a stream of their own; in the
    backward pass the one before is fetched while the current one is used, so that the copies hide behind the work."""

    def __init__(self) -> None:
        super().__init__(self._keep, self._give_back)
        self.kept: list[_Kept] = []

    def _keep(self, tensor: Tensor) -> "Tensor | _Kept":
        large = tensor.is_cuda and tensor.numel() * tensor.element_size() >= LEAST_BYTES
        if not large or tensor.is_leaf or not tensor.is_contiguous():
            return tensor
        kept = _Kept(tensor, len(self.kept))
        self.kept.append(kept)
        return kept

    def _give_back(self, kept: "Tensor | _Kept") -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        tensor = kept.fetch()
        if kept.place > 0:
            self.kept[kept.place - 1].start_fetching()
        return tensor


class _Kept:
    """One activation on the host."""

    def __init__(self, tensor: Tensor, place: int) -> None:
        self.place = place
        self.device = tensor.device
        self.stream = _side_stream(tensor.device)
        self.host: Tensor | None = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self.coming: Tensor | None = None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            self.host.copy_(tensor.detach(), non_blocking=True)
        tensor.record_stream(self.stream)

    def start_fetching(self) -> None:
        """Begin the copy back, if it has not begun."""
        if self.host is not None:
            with torch.cuda.stream(self.stream):
                self.coming = self.host.to(self.device, non_blocking=True)
            self.host = None  # pinned memory goes back to torch's pool now, not when these objects are collected

    def fetch(self) -> Tensor:
        """Return the activation on the card; it is forgotten here."""
        self.start_fetching()
        tensor, self.coming = self.coming, None
        assert tensor is not None
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        tensor.record_stream(current)
        return tensor


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream for copies of a card: it must be the same for all, so that copies stay in order."""
    return torch.cuda.Stream(device)
