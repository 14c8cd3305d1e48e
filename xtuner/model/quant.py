"""Frozen weights in 4 or 8 bits: bitsandbytes owns the storage, transformers does the loading."""

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from xtuner.config.spec import QuantSpec
from xtuner.errors import UserError
from xtuner.ops.nf4 import dequantise
from xtuner.ops.packed4bit import Packed4bit


def quantization_config(spec: QuantSpec, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the loading instruction: NF4 or FP4 (https://arxiv.org/abs/2305.14314), or LLM.int8()
    (https://arxiv.org/abs/2208.07339). `dtype` is computed in where `spec.compute_dtype` is "auto"."""
    if spec.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=spec.int8_threshold)
    compute = dtype if spec.compute_dtype == "auto" else getattr(torch, spec.compute_dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.type,
        bnb_4bit_use_double_quant=spec.double,
        bnb_4bit_compute_dtype=compute,
    )


def freeze_quantised(model: PreTrainedModel, *, train: bool) -> None:
    """Freeze every weight.

    Norms stay in the compute dtype, as their arithmetic is fp32 inside either way. On CPUs with AVX512-BF16,
    bitsandbytes repacks 4-bit weights in evaluation mode for good, and they carry no gradient afterwards; a model
    that is evaluated between training steps must not do that, nor can layers with broken rows.
    """
    model.requires_grad_(False)
    for module in model.modules():
        repacks = isinstance(module, nn.Linear) and hasattr(module, "support_avx512bf16_for_cpu")
        if repacks and (train or has_broken_rows(module)):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def has_broken_rows(layer: Any) -> bool:
    """Whether rows of a 4-bit layer on a CPU end inside of a block of numbers that share a scale."""
    state = getattr(layer.weight, "quant_state", None)
    return state is not None and not layer.weight.is_cuda and layer.in_features % state.blocksize != 0


def check_rows(model: nn.Module) -> None:
    """Refuse 4-bit layers that bitsandbytes itself would compute wrong (`check_layer`). Layers with an adapter of ours
    are computed by us.

    Raises:
        UserError: there is such a layer, and this is such a CPU.
    """
    from bitsandbytes.nn import Linear4bit

    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit) and not name.endswith(".base_layer") and has_broken_rows(layer):
            check_layer(name, layer, "Use 8 bits (--bits 8), or leave the weights as they are.")
            return  # another CPU


def check_layer(name: str, layer: Any, fix: str) -> None:
    """Refuse a 4-bit layer that bitsandbytes reads wrong: its kernels for CPUs with AVX-512 lose their place (0.50.2)
    where rows are broken. `fix` is what to type.

    Raises:
        UserError: it does here.
    """
    from bitsandbytes.functional import dequantize_4bit

    weight: Any = layer.weight
    state = weight.quant_state
    if not has_broken_rows(layer):
        return
    right = dequantise(Packed4bit.of(weight.data, state), state.dtype)
    if not torch.equal(dequantize_4bit(weight.data, state), right):
        raise UserError(
            f"On this CPU bitsandbytes reads 4-bit weights wrong whose rows ({layer.in_features} numbers in {name}) "
            f"end inside of a block of {state.blocksize}.",
            fix,
        )
