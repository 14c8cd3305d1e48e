"""Llama's config keys and layer parts, for families whose checkpoints use the same names."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from xtuner.model.families.family import FamilyConfig
from xtuner.model.families.layer import Attention, DecoderLayer
from xtuner.model.families.rope import read_rope


@strict
class LlamaKeys(FamilyConfig):
    """The keys of all such families, with the defaults of most of their original configs."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int | None = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse a width that the heads do not divide."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("num_attention_heads does not divide hidden_size")
        super().__post_init__(**kwargs)


@strict
class GroupedKeys(LlamaKeys):
    """Those of families whose heads may share keys and values, and whose rotation can be stretched."""

    num_key_value_heads: int | None = None
    rope_theta: float | int = 10000
    rope_scaling: dict[str, Any] | None = None
    """None, or {"type": "linear" | "dynamic", "factor": at least 1}."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what depends on other keys; refuse what these families do not know."""
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads and num_key_value_heads do not divide each other")
        read_rope(self)
        super().__post_init__(**kwargs)


@strict
class LlamaLikeConfig(GroupedKeys):
    """Those of Llama itself. `pretraining_tp` cuts products into parts and changes nothing."""

    pad_token_id: int | None = None
    attention_bias: bool = False
    """Whether q, k, v and o have one."""
    attention_dropout: float | int = 0.0


class SeparateAttention(Attention):
    """Attention with one matrix each for queries, keys, values and output."""

    def __init__(
        self, config: Any, layer_idx: int, *, num_key_value_heads: int, bias: bool, dropout: float = 0.0
    ) -> None:
        size, heads = config.hidden_size, config.num_attention_heads
        width = size // heads
        super().__init__(config, layer_idx, num_heads=heads, num_key_value_heads=num_key_value_heads, head_dim=width)
        self.dropout = dropout
        self.q_proj = nn.Linear(size, size, bias=bias)
        self.k_proj = nn.Linear(size, num_key_value_heads * width, bias=bias)
        self.v_proj = nn.Linear(size, num_key_value_heads * width, bias=bias)
        self.o_proj = nn.Linear(size, size, bias=bias)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> queries (B, H, T, d), keys and values (B, G, T, d)."""
        query, key, value = (projection(hidden) for projection in (self.q_proj, self.k_proj, self.v_proj))
        return self.split_heads(query), self.split_heads(key), self.split_heads(value)


class LlamaLayer(DecoderLayer):
    """The layer that such a config describes, under Llama's names."""

    def build_attention(self, config: LlamaLikeConfig, layer_idx: int) -> Attention:
        """Make the attention."""
        assert config.num_key_value_heads is not None
        return SeparateAttention(
            config,
            layer_idx,
            num_key_value_heads=config.num_key_value_heads,
            bias=config.attention_bias,
            dropout=config.attention_dropout,
        )


class FusedAttention(Attention):
    """Attention of which one matrix makes queries, keys and values, in rows one after another; `FUSED` is its name."""

    FUSED: ClassVar[str]

    def __init__(self, config: Any, layer_idx: int, *, bias: bool, output_bias: bool) -> None:
        size, heads = config.hidden_size, config.num_attention_heads
        super().__init__(config, layer_idx, num_heads=heads, num_key_value_heads=heads, head_dim=size // heads)
        self.add_module(self.FUSED, nn.Linear(size, 3 * size, bias=bias))
        self.add_module(self.OUTPUT, nn.Linear(size, size, bias=output_bias))

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> queries, keys and values, (B, H, T, d) each."""
        query, key, value = getattr(self, self.FUSED)(hidden).chunk(3, dim=-1)
        return self.split_heads(query), self.split_heads(key), self.split_heads(value)
