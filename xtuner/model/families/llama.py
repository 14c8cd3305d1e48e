"""Llama's config keys and layer parts, for families whose checkpoints use the same names."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig

from xtuner.model.families.family import FamilyConfig
from xtuner.model.families.layer import Attention
from xtuner.model.families.rope import read_rope


@strict
class LlamaLikeConfig(FamilyConfig):
    """The keys that such families share, with the defaults of their original configs."""

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_theta: float | int = 10000
    rope_scaling: dict[str, Any] | None = None
    """None, or {"type": "linear" | "dynamic", "factor": at least 1}."""
    attention_bias: bool = False
    """Whether q, k, v and o have one."""
    attention_dropout: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what depends on other keys; refuse what these families do not know."""
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("hidden_size, num_attention_heads and num_key_value_heads do not divide each other")
        read_rope(self)
        super().__post_init__(**kwargs)


class SeparateAttention(Attention):
    """Attention with one matrix each for queries, keys, values and output."""

    def __init__(
        self,
        config: PreTrainedConfig,
        layer_idx: int,
        *,
        num_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        bias: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            config, layer_idx, num_heads=num_heads, num_key_value_heads=num_key_value_heads, head_dim=head_dim
        )
        self.dropout = dropout
        self.q_proj = nn.Linear(config.hidden_size, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, num_key_value_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, num_key_value_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * head_dim, config.hidden_size, bias=bias)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> queries (B, H, T, d), keys and values (B, G, T, d)."""
        query, key, value = (projection(hidden) for projection in (self.q_proj, self.k_proj, self.v_proj))
        return self.split_heads(query), self.split_heads(key), self.split_heads(value)

    def merge(self, mixed: Tensor) -> Tensor:
        """(B, T, H * d) -> (B, T, D)."""
        return self.o_proj(mixed)


def build_attention(config: LlamaLikeConfig, layer_idx: int) -> SeparateAttention:
    """Make the attention that a Llama-like config describes."""
    assert config.num_key_value_heads is not None
    return SeparateAttention(
        config,
        layer_idx,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        bias=config.attention_bias,
        dropout=config.attention_dropout,
    )
