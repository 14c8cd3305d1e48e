"""An output head in 4 bits, for cards that hold little else: who may have one, and how a model gets it."""

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import PreTrainedModel

from xtuner.config.spec import LoraSpec, QuantSpec
from xtuner.errors import UserError
from xtuner.model.quant import check_layer


def quantise_head(model: PreTrainedModel, spec: QuantSpec, lora: LoraSpec | None) -> None:
    """Put a layer of bitsandbytes in the place of the output head of `model`.

    It is made of the loaded head, so the card holds both for a moment, before anything else is there.

    Raises:
        UserError: the head is the embedding too, is trained whole, is no plain linear layer, or would be read wrong.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise UserError(
            f"The output head of {type(model).__name__} is no plain linear layer, so it is not stored in 4 bits.",
            "Leave model.quant.head out.",
        )
    if head.weight is model.get_input_embeddings().weight:
        raise UserError(
            "The output head of this model is its embedding too, whose rows are not stored in 4 bits.",
            "Leave model.quant.head out.",
        )
    name = next(name for name, module in model.named_modules() if module is head)
    if lora is not None and {name, name.rpartition(".")[2]} & set(lora.modules_to_save):
        raise UserError(
            f"The output head ({name}) is trained whole, so it cannot be stored in 4 bits.",
            f"Leave out model.quant.head, or {name} in model.lora.modules_to_save (model.resize_vocab adds it).",
        )
    made = to_4bit(head, spec)
    check_layer(name, made, "Leave model.quant.head out.")
    model.set_submodule(name, made)


def to_4bit(layer: nn.Linear, spec: QuantSpec) -> Linear4bit:
    """Return `layer` (O, I) with its weight in 4 bits, on the same device."""
    made = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=False,
        compute_dtype=None if spec.compute_dtype == "auto" else getattr(torch, spec.compute_dtype),
        device="meta",
    )
    weight: Any = Params4bit(
        layer.weight.detach(),
        requires_grad=False,
        compress_statistics=spec.double,
        quant_type=spec.type,
        module=made,
    )
    made.weight = weight.to(layer.weight.device)  # which quantises
    made.bias = layer.bias
    made.support_avx512bf16_for_cpu = False  # packing for answers on a CPU is for good, see quant.freeze_quantised
    return made.requires_grad_(False)
