"""Published sizes of models that people train, for plans before anything is downloaded.

From the config.json files of the repositories that are named.
"""

import re
from collections.abc import Mapping
from typing import Any

FIELDS = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)

_QWEN2 = "qwen2"
KNOWN: Mapping[str, tuple[Any, ...]] = {
    "internlm/internlm-7b": ("internlm", 32, 4096, 32, 32, 11008, 103168),
    "internlm/internlm-20b": ("internlm", 60, 5120, 40, 40, 13824, 103168),
    "internlm/internlm2-1_8b": ("internlm2", 24, 2048, 16, 8, 8192, 92544),
    "internlm/internlm2-7b": ("internlm2", 32, 4096, 32, 8, 14336, 92544),
    "internlm/internlm2-20b": ("internlm2", 48, 6144, 48, 8, 16384, 92544),
    "internlm/internlm2_5-7b": ("internlm2", 32, 4096, 32, 8, 14336, 92544),
    "baichuan-inc/Baichuan-7B": ("baichuan", 32, 4096, 32, 32, 11008, 64000),
    "baichuan-inc/Baichuan-13B": ("baichuan", 40, 5120, 40, 40, 13696, 64000),
    "baichuan-inc/Baichuan2-7B": ("baichuan", 32, 4096, 32, 32, 11008, 125696),
    "baichuan-inc/Baichuan2-13B": ("baichuan", 40, 5120, 40, 40, 13696, 125696),
    "THUDM/chatglm2-6b": ("chatglm", 28, 4096, 32, 2, 13696, 65024),
    "THUDM/chatglm3-6b": ("chatglm", 28, 4096, 32, 2, 13696, 65024),
    "huggyllama/llama-7b": ("llama", 32, 4096, 32, 32, 11008, 32000),
    "meta-llama/Llama-2-7b": ("llama", 32, 4096, 32, 32, 11008, 32000),
    "meta-llama/Llama-2-13b": ("llama", 40, 5120, 40, 40, 13824, 32000),
    "meta-llama/Llama-2-70b": ("llama", 80, 8192, 64, 8, 28672, 32000),
    "meta-llama/Meta-Llama-3-8B": ("llama", 32, 4096, 32, 8, 14336, 128256),
    "meta-llama/Meta-Llama-3-70B": ("llama", 80, 8192, 64, 8, 28672, 128256),
    "01-ai/Yi-6B": ("llama", 32, 4096, 32, 4, 11008, 64000),
    "01-ai/Yi-34B": ("llama", 60, 7168, 56, 8, 20480, 64000),
    "mistralai/Mistral-7B": ("mistral", 32, 4096, 32, 8, 14336, 32000),
    "HuggingFaceH4/zephyr-7b": ("mistral", 32, 4096, 32, 8, 14336, 32000),
    "deepseek-ai/deepseek-coder-6.7b": ("llama", 32, 4096, 32, 32, 11008, 32256),
    "Qwen/Qwen-1_8B": ("qwen", 24, 2048, 16, 16, 11008, 151936),
    "Qwen/Qwen-7B": ("qwen", 32, 4096, 32, 32, 22016, 151936),
    "Qwen/Qwen-72B": ("qwen", 80, 8192, 64, 64, 49152, 152064),
    "Qwen/Qwen1.5-0.5B": (_QWEN2, 24, 1024, 16, 16, 2816, 151936),
    "Qwen/Qwen1.5-1.8B": (_QWEN2, 24, 2048, 16, 16, 5504, 151936),
    "Qwen/Qwen1.5-4B": (_QWEN2, 40, 2560, 20, 20, 6912, 151936),
    "Qwen/Qwen1.5-7B": (_QWEN2, 32, 4096, 32, 32, 11008, 151936),
    "Qwen/Qwen1.5-14B": (_QWEN2, 40, 5120, 40, 40, 13696, 152064),
    "Qwen/Qwen1.5-72B": (_QWEN2, 80, 8192, 64, 64, 24576, 152064),
    "Qwen/Qwen1.5-110B": (_QWEN2, 80, 8192, 64, 8, 49152, 152064),
    "Qwen/Qwen2.5-7B": (_QWEN2, 28, 3584, 28, 4, 18944, 152064),
    "Qwen/Qwen2.5-14B": (_QWEN2, 48, 5120, 40, 8, 13824, 152064),
    "Qwen/Qwen2.5-32B": (_QWEN2, 64, 5120, 40, 8, 27648, 152064),
    "google/gemma-2b": ("gemma", 18, 2048, 8, 1, 16384, 256000),
    "google/gemma-7b": ("gemma", 28, 3072, 16, 16, 24576, 256000),
    "microsoft/Phi-3-mini": ("phi3", 32, 3072, 32, 32, 8192, 32064),
    "mistralai/Mixtral-8x7B": ("mixtral", 32, 4096, 32, 8, 14336, 32000),
    "openbmb/MiniCPM-1B": ("minicpm", 52, 1536, 24, 8, 3840, 73440),
    "openbmb/MiniCPM-2B": ("minicpm", 40, 2304, 36, 36, 5760, 122753),
    "bigcode/starcoder": ("gpt_bigcode", 40, 6144, 48, 1, 24576, 49152),
}
"""Owner and name of a repository without what makes it a chat model -> the values of `FIELDS`."""

MORE: Mapping[str, Mapping[str, Any]] = {
    "google/gemma": {"head_dim": 256, "tie_word_embeddings": True},
    "mistralai/Mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "openbmb/MiniCPM": {"tie_word_embeddings": True},
    "bigcode/starcoder": {"tie_word_embeddings": True},
    "Qwen/Qwen1.5-0.5B": {"tie_word_embeddings": True},
}
"""What these tell beside `FIELDS`."""

_LLAMA = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
LEFT_OUT: Mapping[str, Mapping[str, int]] = {
    "llama": {**_LLAMA, "intermediate_size": 11008, "vocab_size": 32000},
    "mistral": {**_LLAMA, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000},
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208},
}
"""What config.json files of models that see leave out of what they say about their language model: the values that
transformers has for its kind."""

VARIANT = re.compile(
    r"-(chat|instruct|base|it|sft|hf|beta|200k|32k|128k|4k|v\d[\d.]*|bf16|intl|dpo)(?=-|$)", re.IGNORECASE
)
"""Parts of a name that say how a model was trained on; its sizes stay."""


def find_known(path: str) -> dict[str, Any] | None:
    """Return the published sizes of the hub model `path` as a config.json spells them, or None.

    `internlm/internlm2-chat-1_8b` has those of `internlm/internlm2-1_8b`.
    """
    plain = VARIANT.sub("", path).lower()
    for name, values in KNOWN.items():
        if name.lower() == plain:
            found = dict(zip(FIELDS, values, strict=True))
            for start, more in MORE.items():
                found |= more if name.startswith(start) else {}
            return found
    return None
