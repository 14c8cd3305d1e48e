"""Fully sharded (FSDP2): every rank keeps a part of each weight, gradient and moment; a decoder layer is put together
while it computes (https://arxiv.org/abs/2304.11277)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from xtuner.checkpoint.dcp import is_dcp
from xtuner.config.spec import RunSpec
from xtuner.dataset.batch import Batch
from xtuner.engine.precision import NOT_FINITE_HELP, Precision
from xtuner.engine.strategy.base import Accept
from xtuner.engine.strategy.parallel import Parallel, check_frozen, checksum, is_finite, quantised
from xtuner.engine.strategy.sharded_state import decode_state, load_sharded, save_sharded
from xtuner.engine.strategy.single import refuse_other
from xtuner.engine.strategy.world import World
from xtuner.errors import UserError
from xtuner.log import LOGGER
from xtuner.model.recompute import decoder_layers
from xtuner.model.trainable import trainable_state
from xtuner.objective.loss import Loss
from xtuner.objective.protocol import Objective

T = TypeVar("T")


class Root(nn.Module):
    """What is called in a model's place, so that the weights outside of its layers are there for as long as a function
    runs, whichever parts of the model it calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], T]) -> T:
        """Call it."""
        return function()


class FSDP(Parallel):
    """A `Strategy` with sharded weights.

    `offload`: shards and optimiser stay in host memory. Quantised weights stay whole on every card: they are small,
    and their libraries do not know shards.
    """

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        world: World,
        spec: RunSpec | None = None,
        sequence_parallel_size: int = 1,
        offload: bool = False,
    ) -> None:
        world.group()
        super().__init__(device, precision, world, spec, sequence_parallel_size)
        if precision.scaled:
            raise UserError(
                "strategy=fsdp does not compute in float16.", "Set loop.precision=bfloat16 (float32 on older cards)."
            )
        if offload and device.type == "cpu":
            raise UserError("strategy.offload has no effect on a CPU.", "Leave it out.")
        self.all_write = world.size > 1
        self.offload = offload
        self.mesh = init_device_mesh(device.type, (world.size,))
        self.root: Any

    def loading_device(self, quantised: bool) -> torch.device:
        """The host, from which the layers come to the cards one by one; quantised weights are made on the card."""
        return self.device if quantised else torch.device("cpu")

    def place(self, model: nn.Module, optimiser: Callable[[nn.Module], Optimizer]) -> nn.Module:
        """Shard every decoder layer, then what is left; then make the optimiser of the shards."""
        self.model = model
        self.ulysses.attach(model)
        whole = quantised(model)
        before = checksum(whole)
        if whole:
            LOGGER.info("The %d quantised weights stay whole on every card.", len(whole))
        full = all(parameter.requires_grad for parameter in model.parameters())
        gathered = self.precision.compute if full and self.precision.autocast else None
        options: dict[str, Any] = {
            "mesh": self.mesh,
            "mp_policy": MixedPrecisionPolicy(gathered, torch.float32, cast_forward_inputs=False),
            "offload_policy": CPUOffloadPolicy() if self.offload else OffloadPolicy(),
            "ignored_params": set(whole),
        }
        for layer in decoder_layers(model):
            fully_shard(layer, **options)
        self.root = fully_shard(Root(model), **options)
        check_frozen(before, checksum(whole), self.world)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = optimiser(model)
        if not type(self.optimizer).__module__.startswith("torch."):
            raise UserError(
                f"{type(self.optimizer).__name__} does not know sharded weights.",
                "Set optim.name=adamw, or strategy=ddp.",
            )
        return model

    def loss(self, objective: Objective, model: nn.Module, batch: Batch) -> Loss:
        """Call the objective with all weights in place; FSDP looks for tensors in tuples and dicts alone."""

        def compute() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            loss = objective(model, batch)
            return loss.total, loss.weight, loss.metrics

        return Loss(*self.within(compute))

    def within(self, function: Callable[[], T]) -> T:
        """Call it as the forward pass of the root."""
        with self.autocast():
            result: T = self.root(function)
        return result

    @contextmanager
    def sync(self, last: bool) -> Iterator[None]:
        """Before the last iteration gradients add up, whole, on every rank."""
        self.root.set_requires_gradient_sync(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient."""
        loss.backward()

    def step(self, max_norm: float | None, accept: Accept | None = None) -> Tensor | None:
        """Clip by the norm over all shards, and step."""
        norm = None
        if max_norm is not None or accept is not None:
            found = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
            norm = found.full_tensor() if isinstance(found, DTensor) else found
            if max_norm is not None:
                nn.utils.clip_grads_with_norm_(self.trained, max_norm, norm)
        if accept is None or norm is None or accept(norm):
            self.optimizer.step()
        self.forget()
        return norm

    def save(self, path: Path, state: Mapping[str, Any], *, optimizer: bool) -> None:
        """Write a folder of `torch.distributed.checkpoint`, each rank its part."""
        weights = trainable_state(self.model)
        finite = is_finite([_local(tensor) for tensor in weights.values()])
        if self.world.agree(not finite):
            raise UserError(f"A weight is not finite, so {path.name} is not written.", NOT_FINITE_HELP)
        moments = {}
        if optimizer:
            names = {id(p): name for name, p in self.model.named_parameters()}
            moments = {names[id(p)]: dict(values) for p, values in self.optimizer.state.items()}
        save_sharded(path, state, weights, moments, self.world)

    def read(self, path: Path) -> dict[str, Any]:
        """Everything in the folder but weights and optimiser."""
        return decode_state(super().read(path))

    def check_kind(self, path: Path) -> None:
        """A folder of `torch.distributed.checkpoint`."""
        if not is_dcp(path):
            refuse_other(path, "takes its own folders")

    def load(self, path: Path) -> None:
        """Read this rank's part of weights and moments, whatever number of ranks has written them."""
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        load_sharded(path, parameters, self.optimizer, self.world)

    def gather(self) -> dict[str, Tensor]:
        """Put the weights together one by one."""
        found: dict[str, Tensor] = {}
        for name, tensor in trainable_state(self.model).items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.world.rank == 0:
                found[name] = whole.cpu()
        return found


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
