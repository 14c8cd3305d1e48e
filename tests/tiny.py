"""Tiny models and tokenizer folders with random weights, for everyone's tests."""

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from xtuner.model.families.internlm2 import InternLM2Config, InternLM2ForCausalLM
from xtuner.model.register import register_families

register_families()

GOLDEN = Path(__file__).parent / "golden"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Put the original tokenizer files of a golden folder into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)


def make_tiny_internlm2(folder: Path, *, layers: int = 2, hidden: int = 64, seed: int = 0, **config: object) -> Path:
    """Save an InternLM2 in its original layout, with the golden tokenizer (752 tokens, internlm2_chat's specials)."""
    torch.manual_seed(seed)
    values = {
        "vocab_size": 752,
        "hidden_size": hidden,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_theta": 1000000,
        "bias": False,
        "pad_token_id": 2,
        "initializer_range": 0.1,
        **config,
    }
    InternLM2ForCausalLM(InternLM2Config(**values)).save_pretrained(folder)
    copy_tokenizer(GOLDEN / "internlm2", folder)
    return folder


def make_tiny_llama(folder: Path, *, layers: int = 2, hidden: int = 64, seed: int = 0, **config: object) -> Path:
    """Save a Llama (grouped heads) with the golden Llama tokenizer."""
    torch.manual_seed(seed)
    values = {**_sizes(layers, hidden), "vocab_size": 640, "pad_token_id": 0, **config}
    LlamaForCausalLM(LlamaConfig(**values)).save_pretrained(folder)
    copy_tokenizer(GOLDEN / "llama_tokenizer", folder)
    return folder


def make_tiny_qwen2(folder: Path, *, layers: int = 2, hidden: int = 64, seed: int = 0, **config: object) -> Path:
    """Save a Qwen2 (bias on q, k, v; tied head by default) without a tokenizer."""
    torch.manual_seed(seed)
    values = {**_sizes(layers, hidden), "vocab_size": 512, "tie_word_embeddings": True, **config}
    Qwen2ForCausalLM(Qwen2Config(**values)).save_pretrained(folder)
    return folder


def _sizes(layers: int, hidden: int) -> dict[str, object]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.1,
    }
