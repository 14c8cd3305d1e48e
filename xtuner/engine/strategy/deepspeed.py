"""DeepSpeed's ZeRO (https://arxiv.org/abs/1910.02054): the one file that knows the package."""

import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xtuner.checkpoint.atomic import ASIDE, put_in_place
from xtuner.checkpoint.folder import writing
from xtuner.checkpoint.state import save_state
from xtuner.checkpoint.zero import MODEL_FILE, PART_FILE
from xtuner.config.spec import RunSpec
from xtuner.dataset.batch import Batch
from xtuner.engine.precision import NOT_FINITE_HELP, Precision
from xtuner.engine.strategy.base import Accept
from xtuner.engine.strategy.parallel import Parallel, check_frozen, checksum, is_finite, quantised
from xtuner.engine.strategy.single import refuse_other
from xtuner.engine.strategy.unpickle import only_data
from xtuner.engine.strategy.world import World
from xtuner.engine.strategy.zero_config import check_sharded, cost_alone, drop_sections, fill_config
from xtuner.errors import UserError
from xtuner.log import LOGGER
from xtuner.model.head import base_model, find_head, is_one_function
from xtuner.model.shared_input import compute_apart
from xtuner.model.trainable import PREFIX
from xtuner.objective.loss import Loss
from xtuner.objective.protocol import Objective

T = TypeVar("T")

OWN = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""The classes, beside tensors, whose objects are in DeepSpeed's folders: they hold numbers."""


class Root(nn.Module):
    """What DeepSpeed wraps. Its one attribute gives the weights the names that 0.1.x gave them in checkpoints."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.llm = model

    def forward(self, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Call it, with the weights in place that it uses; DeepSpeed looks for tensors in the values."""
        return function()


def import_deepspeed(device: torch.device, world: World) -> Any:
    """Import the package, with what it looks for in the environment.

    Raises:
        UserError: it is not installed, or cannot compile what it needs on a CPU.
    """
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # it insists, also where there is one process
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or it warns that it has found no card
    try:
        import deepspeed
    except ImportError as error:
        what = "is not installed" if error.name == "deepspeed" else f"cannot be loaded: {error}"
        raise UserError(f"DeepSpeed {what}.", "Type: pip install deepspeed (or xtuner[deepspeed])") from error
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler) is None:
            raise UserError(
                f"On a CPU DeepSpeed compiles a part of itself, and there is no C++ compiler {compiler}.",
                "Install one (apt install g++), or train with --strategy ddp or fsdp.",
            )
        LOGGER.info("On a CPU DeepSpeed compiles a part of itself; the first time that takes half a minute.")
    return deepspeed


@contextmanager
def installed_tools() -> Iterator[None]:
    """Let what is compiled in this block find the ninja that was installed beside DeepSpeed."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join(filter(None, [before, sysconfig.get_path("scripts")]))
    try:
        yield
    finally:
        os.environ["PATH"] = before


class DeepSpeed(Parallel):
    """A `Strategy` around DeepSpeed's engine; `config` is its JSON."""

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        world: World,
        spec: RunSpec,
        config: dict[str, Any],
        sequence_parallel_size: int = 1,
    ) -> None:
        self.deepspeed: Any = import_deepspeed(device, world)
        world.group()
        super().__init__(device, precision, world, spec, sequence_parallel_size)
        self.all_write, self.keeps_float32 = world.size > 1, True
        self.run_spec, self.config = spec, drop_sections(config)
        self.sharded = int((config.get("zero_optimization") or {}).get("stage", 0)) == 3
        check_sharded(spec, world.size, sharded=self.sharded)
        self.engine: Any

    def place(self, model: nn.Module, optimiser: Callable[[nn.Module], Optimizer]) -> nn.Module:
        """Let DeepSpeed wrap model and optimiser."""
        self.model = model if quantised(model) else model.to(self.device)
        self.ulysses.attach(model)
        if self.sharded:
            compute_apart(model)
        before = checksum(quantised(model))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        hidden = int(base_model(model).config.get_text_config().hidden_size)
        config = fill_config(self.config, self.run_spec, self.precision, self.world.size, hidden)
        if self.world.size == 1 and (said := cost_alone(config, sum(p.numel() for p in trained))):
            LOGGER.warning(said)
        root = Root(model)
        with installed_tools():
            self.engine = self.deepspeed.initialize(model=root, optimizer=optimiser(model), config=config)[0]
        if self.sharded:
            self._keep_head(root)
        self.optimizer = self.engine.optimizer
        check_frozen(before, checksum(self._one_by_one(quantised(model))), self.world)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return model

    def _one_by_one(self, parameters: list[nn.Parameter]) -> Iterator[nn.Parameter]:
        """Yield weights, each whole for as long as it is looked at."""
        for parameter in parameters:
            with self.deepspeed.zero.GatheredParameters([parameter], enabled=self.sharded):
                yield parameter

    def loss(self, objective: Objective, model: nn.Module, batch: Batch) -> Loss:
        """Call the objective through the engine, which must see the tensor that is differentiated."""

        def compute() -> dict[str, Tensor]:
            loss = objective(model, batch)
            return {**loss.metrics, "xtuner.total": loss.total, "xtuner.weight": loss.weight}

        found = self.engine(compute)
        return Loss(found.pop("xtuner.total"), found.pop("xtuner.weight"), found)

    def within(self, function: Callable[[], T]) -> T:
        """Call it through the engine, which decides the number format.

        Under ZeRO-3 every card holds all weights meanwhile: DeepSpeed keeps a record of the order in which modules are
        called, and loses track when something else is done between two passes that learn.
        """
        if self.sharded:
            from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

            with unwrap_model_for_generation(self.engine):
                return function()
        result: T = self.engine(lambda: {"result": function()})["result"]
        return result

    @contextmanager
    def sync(self, last: bool) -> Iterator[None]:
        """The engine steps when it is told, not when it has counted: the last step of a run may be shorter."""
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient; the loss is divided by the targets of all iterations already."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def _keep_head(self, root: Root) -> None:
        """Let the head's weights be whole for as long as the root is called: losses use them without calling the head.

        Raises:
            UserError: the head is more than a product, such as one with an adapter, and has to be called.
        """
        head = find_head(self.model).module
        parameters = list(head.parameters())
        with self.deepspeed.zero.GatheredParameters(parameters):
            alone = is_one_function(head)
        if not alone and self.world.size > 1:
            raise UserError(
                f"With ZeRO-3 a model's head cannot be such a {type(head).__name__}: processes would call its parts "
                "differently often.",
                "Take ZeRO-2, or leave the head out of model.lora.",
            )
        for parameter in parameters:
            self.deepspeed.zero.register_external_parameter(root, parameter)

    def step(self, max_norm: float | None, accept: Accept | None = None) -> Tensor | None:
        """The engine clips and steps."""
        if accept is not None:
            raise UserError("DeepSpeed makes its steps itself, so none can be skipped.", "Leave --skip-spikes out.")
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return None if norm is None or max_norm is None else torch.as_tensor(norm)

    def forget(self) -> None:
        """Drop all gradients."""
        self.engine.optimizer.zero_grad()

    def save(self, path: Path, state: Mapping[str, Any], *, optimizer: bool) -> None:
        """Write DeepSpeed's folder, under the names of 0.1.x; without the optimiser one plain file."""
        weights = self.gather()
        bad = next((name for name, tensor in weights.items() if not is_finite([tensor])), None)
        if self.world.agree(bad is not None):
            raise UserError(f"The weight {bad} is not finite, so {path.name} is not written.", NOT_FINITE_HELP)
        if not optimizer:
            self.world.first(lambda: save_state(path, {**state, "state_dict": weights}))
            return
        aside = path.with_name(f".{path.name}{ASIDE}")
        try:
            with writing(path):
                self.engine.save_checkpoint(
                    str(path.parent),
                    tag=aside.name,
                    client_state=dict(state),
                    save_latest=False,
                    exclude_frozen_parameters=True,
                )
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)  # what is left of it would keep a full disk full
            raise

        def publish() -> None:
            with writing(path):
                put_in_place(aside, path)

        self.world.first(publish)

    def check_kind(self, path: Path) -> None:
        """A folder of DeepSpeed, of as many processes, whose weights were spread as they are now."""
        names = [file.name for file in path.iterdir()] if path.is_dir() else []
        parts = sum(PART_FILE.fullmatch(name) is not None for name in names)
        if not parts:
            refuse_other(path, "takes folders of DeepSpeed")
        models = [found for name in names if (found := MODEL_FILE.fullmatch(name))]
        sharded = any(found[1] is not None for found in models)
        if parts == self.world.size and sharded == self.sharded and len(models) == (parts if sharded else 1):
            return
        was = "ZeRO-3" if sharded else "ZeRO-1 or 2"
        raise UserError(
            f"{path} holds {parts} parts of the optimiser and {len(models)} of the model, of {was}; DeepSpeed goes on "
            f"only with the kind of ZeRO and the number of processes that saved it, here {self.world.size} of "
            f"{'ZeRO-3' if self.sharded else 'ZeRO-1 or 2'}.",
            f"Go on as it was saved, or start anew from its weights: model.weights={path}",
        )

    def load(self, path: Path) -> None:
        """Let DeepSpeed read its folder back.

        Raises:
            UserError: it cannot, or there is something in it that would be run.
        """
        try:
            with only_data(path, OWN):
                found, _ = self.engine.load_checkpoint(
                    str(path.parent), tag=path.name, load_module_strict=False, load_lr_scheduler_states=False
                )
        except (RuntimeError, KeyError, ValueError, AssertionError) as error:
            raise UserError(
                f"DeepSpeed cannot go on from {path}: {str(error) or type(error).__name__}.",
                f"Start anew from its weights: model.weights={path}",
            ) from error
        assert found is not None

    def gather(self) -> dict[str, Tensor]:
        """Put the weights together one by one, in float32."""
        from deepspeed.utils import safe_get_full_fp32_param

        found: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            whole = safe_get_full_fp32_param(parameter)
            if self.world.rank == 0:
                found[PREFIX + name] = (parameter.detach() if whole is None else whole).cpu()
        return found
