"""Frozen weights in 4 or 8 bits: bitsandbytes owns the storage, transformers does the loading."""

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from xtuner.config.spec import QuantSpec


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
    that is evaluated between training steps must not do that, nor can layers whose rows end inside of a block.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear) and hasattr(module, "support_avx512bf16_for_cpu"):
            state = getattr(module.weight, "quant_state", None)
            if train or state is None or module.in_features % state.blocksize:
                module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
