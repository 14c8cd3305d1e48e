"""From hidden states to logits: where a model's decoder ends, and what its head does besides the product."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtuner.errors import UserError
from xtuner.model.attention import packing_arguments, wants_borders
from xtuner.ops.linear_cross_entropy import chunk_rows
from xtuner.ops.packed4bit import Packed4bit
from xtuner.ops.packed_head import PackedHead
from xtuner.ops.packing import Packing


class PackedRow(Protocol):
    """What of a batch the decoder needs: ids and positions (1, T), and the borders of the segments."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def packing(self) -> Packing: ...


@dataclass(frozen=True)
class Head:
    """The output layer of a model, callable on any rows of its hidden states."""

    module: nn.Module
    product: Callable[[Tensor], Tensor]
    """What `module` computes: itself, or of a 4-bit head a product that dequantises once for many calls."""
    scale: float
    """Logits are multiplied by this (Cohere; Granite divides)."""
    softcap: float | None
    """Logits are squeezed into +-softcap (Gemma 2)."""
    vocabulary: int

    def __call__(self, hidden: Tensor) -> Tensor:
        """(n, D) -> logits (n, V)."""
        logits = self.product(hidden)
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    @property
    def chunk(self) -> int:
        """How many rows at a time keep the logits small."""
        weight = getattr(self.module, "weight", None)
        return chunk_rows(self.vocabulary, trained=weight is not None and weight.requires_grad)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights of the head that are trained, its adapter's included."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside an adapter's wrapper (or the model itself)."""
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    assert isinstance(inner, PreTrainedModel), f"{type(inner).__name__} is not a transformers model"
    return inner


def find_head(model: nn.Module) -> Head:
    """Return the head of a causal language model, with the facts that its config states.

    Ask for it anew for every loss: what a 4-bit head dequantises lives as long as the `Head`.
    """
    inner = base_model(model)
    config = inner.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    module = inner.get_output_embeddings()
    state = getattr(module, "quant_state", None)  # a bare 4-bit layer has it; one with an adapter runs by itself
    product: Callable[[Tensor], Tensor] = module.forward if is_one_function(module) else module
    if state is not None:
        packed = Packed4bit.of(module.weight, module.weight.quant_state)
        product = PackedHead(packed, module.bias, module.compute_dtype)
    return Head(module, product, scale, softcap, config.vocab_size)


def is_one_function(module: nn.Module) -> bool:
    """Whether a head computes all by itself, so that its `forward` serves as well as calling it.

    How often a head is called depends on how much of a batch is learned. Where weights are put together whenever a
    layer is called (ZeRO-3), ranks would wait for ever for one that has less to learn.
    """
    if not hasattr(module, "lora_A"):
        return type(module) is nn.Linear
    from xtuner.model.lora_layer import LoraLinear  # PEFT, which is loaded if there is an adapter

    return isinstance(module, LoraLinear) and module.adapted(torch.empty(1)) is not None


class Decoded(NamedTuple):
    """What stands before the head says about a packed row."""

    hidden: Tensor
    """(1, T, D)."""
    penalty: Tensor | None
    """(S,): what the model adds to the mean loss of each segment, such as the balance of its experts."""


def decode(model: nn.Module, batch: PackedRow) -> Decoded:
    """Run the decoder without its head on a packed row."""
    inner = base_model(model)
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if wants_borders(batch.packing, inner):
        arguments.update(position_ids=batch.positions, **packing_arguments(batch.packing, inner))
    output = getattr(inner, inner.base_model_prefix)(**arguments)
    return Decoded(output.last_hidden_state, getattr(output, "penalty", None))


def run_decoder(inner: PreTrainedModel, **arguments: Any) -> Tensor:
    """Call what stands before the head with the arguments of a forward pass; returns (B, T, D)."""
    hidden: Tensor = getattr(inner, inner.base_model_prefix)(**arguments).last_hidden_state
    return hidden


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Prove on a few tokens that decoder and `Head` together give the model's own logits.

    Raises:
        UserError: the model does something to its logits that is not known here, so its loss would be wrong.
    """
    inner = base_model(model)
    ids = torch.arange(3, 9, device=inner.device)[None]
    was_training = inner.training
    inner.eval()
    try:
        expected = inner(input_ids=ids, use_cache=False).logits[0].float()
        hidden = run_decoder(inner, input_ids=ids, use_cache=False)
        found = find_head(model)(hidden[0]).float()
    finally:
        inner.train(was_training)
    if found.shape != expected.shape or (found - expected).norm() > 0.02 * expected.norm():
        raise UserError(
            f"The output head of {type(inner).__name__} does more than is known here; its loss would be wrong.",
            "Choose another model; this one cannot be trained yet.",
        )
