"""Tiny random models of the architectures that transformers brings itself, with the tokenizer of the built-in model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny import copy_tokenizer
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

BUILT_IN = Path(__file__).parent.parent / "xtuner" / "assets" / "tiny"
VOCABULARY = 3584

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

STOCK: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama 3": ("llama", {**SIZES, "rope_parameters": LLAMA3_ROPE}),
    "yi": ("llama", {**SIZES, "num_key_value_heads": 1, "rope_theta": 5000000.0}),
    "mistral": ("mistral", {**SIZES, "head_dim": 8, "sliding_window": 4}),
    "mixtral": ("mixtral", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2": ("qwen2", {**SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen2 moe": (
        "qwen2_moe",
        {**SIZES, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0]},
    ),
    "qwen3": ("qwen3", {**SIZES, "head_dim": 16}),
    "qwen3 moe": ("qwen3_moe", {**SIZES, **EXPERTS, "head_dim": 16, "num_experts": 4}),
    "gemma": ("gemma", {**SIZES, "head_dim": 8}),
    "gemma 2": (
        "gemma2",
        {
            **SIZES,
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma 3": (
        "gemma3_text",
        {
            **SIZES,
            "head_dim": 8,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
        },
    ),
    "phi 3": ("phi3", {**SIZES, "sliding_window": 4, "partial_rotary_factor": 0.5, "pad_token_id": 0}),
    "deepseek v2": (
        "deepseek_v2",
        {
            **SIZES,
            **EXPERTS,
            **LATENT,
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "cohere": ("cohere", {**SIZES, "logit_scale": 0.25}),
    "starcoder": (
        "gpt_bigcode",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 512, "initializer_range": 0.2},
    ),
    "starcoder 2": ("starcoder2", {**SIZES, "sliding_window": 4}),
    "glm 4": ("glm", {**SIZES, "head_dim": 8, "partial_rotary_factor": 0.5, "pad_token_id": 0}),
    "glm 4 0414": ("glm4", {**SIZES, "head_dim": 8, "partial_rotary_factor": 0.5, "pad_token_id": 0}),
    "internlm 3": ("internlm3", {**SIZES, "head_dim": 8, "qkv_bias": True, "bias": True}),
    "minicpm 3": (
        "minicpm3",
        {**SIZES, **LATENT, "num_key_value_heads": 4, "q_lora_rank": 16, "dim_model_base": 16, "scale_depth": 1.4},
    ),
    "granite": ("granite", {**SIZES, "logits_scaling": 4.0}),
    "gpt-oss": (
        "gpt_oss",
        {**SIZES, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "stablelm": ("stablelm", {**SIZES}),
    "falcon": ("falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
}
"""Name -> model_type and sizes."""


def is_known(name: str) -> bool:
    """Whether the installed transformers has the architecture (5.17 lacks some that 5.23 has)."""
    return STOCK[name][0] in CONFIG_MAPPING


def make_model(name: str, attention: str | None = None, **changes: Any) -> PreTrainedModel:
    """Build one in memory, in evaluation mode."""
    kind, sizes = STOCK[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, **{"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, **sizes, **changes}
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()


def save_model(name: str, folder: Path, **changes: Any) -> Path:
    """Save one as a checkpoint folder."""
    make_model(name, **changes).save_pretrained(folder)
    copy_tokenizer(BUILT_IN, folder)
    return folder
