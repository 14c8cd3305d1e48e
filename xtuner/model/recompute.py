"""What decoder layers keep for the backward pass, and where: on the card, or on the host; compiled layers keep less."""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as tracer
from torch._functorch import config as compiler
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from xtuner.model.tiled_mlp import tile_mlp

LEAST_BYTES = 2**25
"""Of the largest activation, at least; what is `SMALL` times smaller (rotations, which all layers share) stays."""

SMALL = 16

KEPT_SHARE = 0.7
"""Of what a compiler would keep of the part of a layer that is not its MLP: norms, which cost next to nothing, are
computed again (https://pytorch.org/blog/activation-checkpointing-techniques/)."""

WAY_ACTIVATIONS = 4
"""How many of the largest activations may be between card and host at a time, in each direction: about what the
attention of a layer keeps, and asks for at once."""
WAY_INPUTS = 1
"""The same where nothing but inputs of layers is moved: the next one, beside the one in use."""


MOST_FORMS = 64
"""Forms of a layer that are compiled at most: with and without gradients, rows of one sample and of several, lengths
that a kernel takes and others. Beyond it torch runs a form uncompiled, which keeps more memory than was planned; it
would after 8."""


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the layers that can recompute their activations, in order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def set_recompute(model: PreTrainedModel, recompute: str | int, *, compiled: bool = False) -> None:
    """Recompute activations in the backward pass (https://arxiv.org/abs/1604.06174) as `ModelSpec.recompute` says.

    "none"; "layers" ("auto" too, when nobody has planned): every layer keeps its input only; a number: so many layers
    do, the others keep everything; "mlp": the MLPs of all layers do, in tiles of tokens, and the rest is kept;
    "offload": the same, and what is kept waits in pinned host memory; "offload_layers": layers keep their input only,
    and there; "offload_groups": groups of layers do (`layer_groups`, once the layers are compiled), and their MLPs run
    in tiles.
    """
    if recompute == "none":
        return
    decoder = getattr(model, model.base_model_prefix)
    if recompute in ("offload", "offload_layers", "offload_groups"):
        way = WAY_ACTIVATIONS if recompute == "offload" else WAY_INPUTS
        _run_within(decoder, lambda module: HostStore(module, way))
    if recompute in ("mlp", "offload", "offload_groups"):
        for layer in decoder_layers(model):
            tile_mlp(layer, compiled=compiled)
        if compiled:
            _run_within(decoder, lambda _: compiler.patch(activation_memory_budget=KEPT_SHARE))
        return
    # transformers renamed the method in 5.23
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if isinstance(recompute, int):
        for layer in decoder_layers(model)[recompute:]:
            layer.gradient_checkpointing = False


def compile_layers(model: PreTrainedModel) -> None:
    """Compile the decoder layers one by one: the code of the first serves all of them.

    Layers that share an input (`shared_input`) leave something for one another, and nothing when the last is done. A
    compiler is told that this need not happen again where a layer is recomputed, as it must not in what it compiles.
    """
    changes = {"recompile_limit": MOST_FORMS, "skip_fwd_side_effects_in_bwd_under_checkpoint": True}
    _run_within(getattr(model, model.base_model_prefix), lambda _: tracer.patch(changes))
    for layer in decoder_layers(model):
        layer.compile()


def _run_within(decoder: nn.Module, make_context: Callable[[nn.Module], AbstractContextManager[Any]]) -> None:
    """Let every forward pass of `decoder` run inside a context of its own."""
    running: list[AbstractContextManager[Any]] = []

    def before(module: nn.Module, arguments: Any) -> None:
        running.append(make_context(module))
        running[-1].__enter__()

    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)

    decoder.register_forward_pre_hook(before)
    decoder.register_forward_hook(after, always_call=True)


class HostStore(saved_tensors_hooks):
    """While entered, large activations that autograd saves go to pinned host memory, on a stream of their own; in the
    backward pass the next ones are fetched while the current one is used, so that the copies hide behind the work.

    What is on its way is limited, in either direction: the computation waits for the copies rather than fill the card
    when the host is slow. The last to leave stay on the card as well, since the backward pass asks for them first.
    Memory on the card belongs to the computing stream alone, so that its allocator may use it again at once.
    """

    def __init__(self, module: nn.Module, way: int) -> None:
        """Weights and buffers of `module` stay where they are; `way` of the largest activations may be under way."""
        super().__init__(self._keep, self._give_back)
        self.way = way
        self.kept: list[_Kept] = []
        self.leaving: deque[_Kept] = deque()
        self.largest = LEAST_BYTES
        self.held = {_place(weight) for weight in (*module.parameters(), *module.buffers())}

    def _keep(self, tensor: Tensor) -> "Tensor | _Kept":
        size = _bytes(tensor)
        self.largest = max(self.largest, size)
        if not tensor.is_cuda or size * SMALL < self.largest or not _is_dense(tensor):
            return tensor
        if isinstance(tensor, nn.Parameter) or _place(tensor) in self.held:
            return tensor
        kept = _Kept(tensor, len(self.kept))
        self.kept.append(kept)
        self.leaving.append(kept)
        self._wait_until_gone(self.way * self.largest)
        return kept

    def _wait_until_gone(self, limit: int) -> None:
        """Let the computation wait until at most `limit` bytes are on their way to the host, and forget the others."""
        under_way = sum(kept.size for kept in self.leaving)
        while under_way > limit:
            gone = self.leaving.popleft()
            gone.leave()
            under_way -= gone.size

    def _give_back(self, kept: "Tensor | _Kept") -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        tensor = kept.fetch()
        coming = 0
        for place in range(kept.place - 1, -1, -1):
            coming += self.kept[place].start_fetching()
            if coming >= self.way * self.largest:
                break
        return tensor


class _Kept:
    """One activation on the host, and on the card as long as it leaves or when it has been fetched."""

    def __init__(self, tensor: Tensor, place: int) -> None:
        self.place = place
        self.size = _bytes(tensor)
        self.device = tensor.device
        self.stream = _side_stream(tensor.device)
        self.host: Tensor | None = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, pin_memory=True
        )
        self.here: Tensor | None = tensor.detach()
        self.copied = self._copy(self.here, self.host)

    def _copy(self, source: Tensor, target: Tensor) -> torch.cuda.Event:
        """Copy beside the computation, after what it has done so far; return the event of having copied."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        return self.stream.record_event()

    def leave(self) -> None:
        """Let go of what is on the card, once it has been copied."""
        torch.cuda.current_stream(self.device).wait_event(self.copied)
        self.here = None

    def start_fetching(self) -> int:
        """Begin the copy back, if it has not begun; return the bytes that this activation takes on the card."""
        if self.host is None and self.here is None:
            return 0  # it was given back
        if self.here is None:
            assert self.host is not None
            self.here = torch.empty_strided(
                self.host.shape, self.host.stride(), dtype=self.host.dtype, device=self.device
            )
            self.copied = self._copy(self.host, self.here)
        self.host = None  # pinned memory goes back to torch's pool now, not when these objects are collected
        return self.size

    def fetch(self) -> Tensor:
        """Return the activation on the card; it is forgotten here."""
        self.start_fetching()
        tensor, self.here = self.here, None
        assert tensor is not None
        torch.cuda.current_stream(self.device).wait_event(self.copied)
        return tensor


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie in memory without gaps, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream for copies of a card: it must be the same for all, so that copies stay in order."""
    return torch.cuda.Stream(device)
