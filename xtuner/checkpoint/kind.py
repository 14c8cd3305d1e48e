"""What is known about kinds of models before one is loaded: how they are packed and what an adapter changes (no torch).

Every row is proven by a test: families of our own by theirs, the others by `tests/model/test_stock_models.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
MEGATRON = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
LATENT = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")

Packing = Literal["ours", "library", "alone"]


@dataclass(frozen=True)
class Kind:
    """A row of the table: a model_type of config.json."""

    name: str
    """What people call it."""
    targets: tuple[str, ...]
    """Layers that a default adapter is put on; a model has those of them that its config asks for."""
    packing: Packing = "ours"
    """Samples in one row: exact with our packed attention, exact with the library's own, or one sample a row."""
    built_in: bool = False
    """Whether the model is written here (`model.register.FAMILIES`), not in transformers."""


KINDS: Mapping[str, Kind] = {
    "baichuan": Kind("Baichuan, Baichuan 2", ("W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"), built_in=True),
    "chatglm": Kind("ChatGLM2, ChatGLM3", MEGATRON, built_in=True),
    "deepseek": Kind("DeepSeek-MoE", GATED, built_in=True),
    "internlm": Kind("InternLM", GATED, built_in=True),
    "internlm2": Kind("InternLM2, InternLM2.5", ("wqkv", "wo", "w1", "w2", "w3", "output"), built_in=True),
    "minicpm": Kind("MiniCPM", GATED, built_in=True),
    "qwen": Kind("Qwen", ("c_attn", "c_proj", "w1", "w2"), built_in=True),
    "bloom": Kind("BLOOM", MEGATRON, "alone"),
    "cohere": Kind("Command R", GATED),
    "deepseek_v2": Kind("DeepSeek V2", LATENT),
    "falcon": Kind("Falcon", MEGATRON, "alone"),
    "gemma": Kind("Gemma", GATED),
    "gemma2": Kind("Gemma 2", GATED),
    "gemma3_text": Kind("Gemma 3 (text)", GATED),
    "glm": Kind("GLM-4", (*ATTENTION, "gate_up_proj", "down_proj")),
    "glm4": Kind("GLM-4-0414", (*ATTENTION, "gate_up_proj", "down_proj")),
    "gpt_bigcode": Kind("StarCoder", ("c_attn", "c_proj", "c_fc")),
    "gpt_oss": Kind("gpt-oss", ATTENTION),
    "granite": Kind("Granite", GATED),
    "internlm3": Kind("InternLM3", GATED),
    "llama": Kind("Llama 1 to 3, Yi, Vicuna, DeepSeek Coder", GATED),
    "mamba": Kind("Mamba", (), "alone"),
    "minicpm3": Kind("MiniCPM3", (*LATENT, "gate_proj", "up_proj", "down_proj")),
    "mistral": Kind("Mistral", GATED),
    "mixtral": Kind("Mixtral", ATTENTION),
    "phi3": Kind("Phi-3", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "qwen2": Kind("Qwen1.5, Qwen2, Qwen2.5", GATED),
    "qwen2_moe": Kind("Qwen1.5-MoE, Qwen2-MoE", (*ATTENTION, "shared_expert_gate")),
    "qwen3": Kind("Qwen3", GATED),
    "qwen3_moe": Kind("Qwen3-MoE", ATTENTION),
    "stablelm": Kind("StableLM", GATED, "library"),
    "starcoder2": Kind("StarCoder2", (*ATTENTION, "c_fc", "c_proj")),
}
"""model_type -> what is known. A kind that is not here is examined when it is loaded, and refused if it must be."""

TIED = (
    *("bloom", "cohere", "falcon", "gemma", "gemma2", "gemma3_text", "gpt_bigcode", "mamba", "minicpm", "minicpm3"),
    *("starcoder2", "gpt2", "opt"),
)
"""Kinds whose output head is the embedding where config.json does not say it."""

PACKED_BY: Mapping[str, str] = {
    "ours": "packed; samples in one row are exactly as if alone",
    "library": "the library's own; samples in one row are exactly as if alone",
    "alone": "the library's own; one sample a row (data.pack=false loop.batch_size=1)",
}
"""`Kind.packing` in words."""
UNKNOWN_PACKING = "found out and proven when training starts"


def is_built_in(model_type: str | None) -> bool:
    """Whether models of this kind are written here, not in transformers."""
    kind = KINDS.get(model_type or "")
    return kind is not None and kind.built_in
