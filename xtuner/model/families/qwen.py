"""Qwen, the first generation (https://arxiv.org/abs/2309.16609): answers beyond its training length by dynamic NTK
and scaled queries, both in evaluation only."""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from xtuner.model.families.chat import ChatMixin
from xtuner.model.families.decoder import CausalLM, Decoder
from xtuner.model.families.family import Family, FamilyConfig
from xtuner.model.families.layer import Attention, DecoderLayer, GatedMLP, PositionEncoding, RMSNorm
from xtuner.model.families.rope import Rotary, rotary_tables, sequence_lengths
from xtuner.model.tokenizers.qwen import QWenTokenizer


@strict
class QWenConfig(FamilyConfig):
    """Keys of the original config.json."""

    model_type = "qwen"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    """Twice the width of the MLP."""
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    seq_length: int = 2048
    """Tokens of a training sequence; what is longer is scaled."""
    max_position_embeddings: int = 8192
    layer_norm_epsilon: float = 1e-6
    no_bias: bool = True
    """Whether the matrices other than c_attn have none."""
    rotary_pct: float | int = 1.0
    rotary_emb_base: float | int = 10000
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    attn_dropout_prob: float | int = 0.0
    emb_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse sizes that do not fit."""
        if self.hidden_size != self.num_attention_heads * self.kv_channels:
            raise ValueError("hidden_size is not num_attention_heads * kv_channels")
        super().__post_init__(**kwargs)


class LongRotary(NamedTuple):
    """A rotation whose queries are stretched, the more the further they stand."""

    rotary: Rotary
    stretch: Tensor
    """(B, T): factors."""

    @property
    def late(self) -> bool:
        """Whether keys are encoded after the cache instead of before it."""
        return self.rotary.late

    def query(self, states: Tensor) -> Tensor:
        """Encode (B, H, T, d)."""
        return self.rotary.query(states * self.stretch[:, None, :, None].to(states.dtype))

    def key(self, states: Tensor) -> Tensor:
        """Encode (B, H, T, d), or where `late` (B, H, S, d)."""
        return self.rotary.key(states)


class QWenAttention(Attention):
    """Attention whose c_attn holds the rows of queries, keys and values one after another."""

    def __init__(self, config: QWenConfig, layer_idx: int) -> None:
        heads, size = config.num_attention_heads, config.hidden_size
        super().__init__(config, layer_idx, num_heads=heads, num_key_value_heads=heads, head_dim=config.kv_channels)
        self.dropout = config.attn_dropout_prob
        self.c_attn = nn.Linear(size, 3 * size)
        self.c_proj = nn.Linear(size, size, bias=not config.no_bias)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> queries, keys and values, (B, H, T, d) each."""
        query, key, value = self.c_attn(hidden).chunk(3, dim=-1)
        return self.split_heads(query), self.split_heads(key), self.split_heads(value)

    def merge(self, mixed: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.c_proj(mixed)


class QWenMLP(GatedMLP):
    """Gated MLP: c_proj(w1(x) * silu(w2(x)))."""

    NAMES = ("w2", "w1", "c_proj")


class QWenBlock(DecoderLayer):
    """The layer under the names of the checkpoints."""

    NAMES = ("attn", "mlp", "ln_1", "ln_2")

    def __init__(self, config: QWenConfig, layer_idx: int) -> None:
        super().__init__(
            QWenAttention(config, layer_idx),
            QWenMLP(config.hidden_size, config.intermediate_size // 2, bias=not config.no_bias),
            RMSNorm(config.hidden_size, config.layer_norm_epsilon),
            RMSNorm(config.hidden_size, config.layer_norm_epsilon),
        )


class QWenModel(Decoder):
    """The decoder: token ids to hidden states."""

    config_class = QWenConfig
    _no_split_modules = ["QWenBlock"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq", r"attn\.masked_bias"]  # noqa: RUF012
    EMBEDDING, LAYERS, NORM = "wte", "h", "ln_f"

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.h = nn.ModuleList(QWenBlock(config, index) for index in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.post_init()

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        return self.drop(super().embed(input_ids))

    def encode_positions(
        self,
        positions: Tensor,
        dtype: torch.dtype,
        cu_seqlens: Tensor | None,
        key_positions: Tensor | None,
        padding: Tensor | None = None,
    ) -> PositionEncoding:
        """Rotate; in evaluation with the base of a longer training length, and with stretched queries beyond it.

        The base is a function of how long a sequence really is, padding left out. Cached keys are turned anew as it
        grows. (What deeper layers keep of a token still is what it was when the token was read; see docs/en/chat.md.)
        """
        config = self.config
        size, base = int(config.kv_channels * config.rotary_pct), float(config.rotary_emb_base)
        if self.training:
            return Rotary(*rotary_tables(positions, size, base, dtype))
        if not config.use_dynamic_ntk:
            rotary = Rotary(*rotary_tables(positions, size, base, dtype))
        else:
            lengths = sequence_lengths(positions, cu_seqlens) if padding is None else padding.sum(-1, keepdim=True)
            wider = base * ntk_alpha(lengths, config.seq_length) ** (size / (size - 2))
            keys = rotary_tables(key_positions, size, wider, dtype) if key_positions is not None else (None, None)
            rotary = Rotary(*rotary_tables(positions, size, wider, dtype), *keys)
        if not config.use_logn_attn:
            return rotary
        return LongRotary(rotary, ((positions + 1).log() / math.log(config.seq_length)).clamp(min=1))


def ntk_alpha(lengths: Tensor, trained: int) -> Tensor:
    """Return by how much the base grows for sequences of `lengths` tokens, of a model trained on `trained` of them."""
    return (2 ** ((lengths / trained).log2() + 1).ceil() - 1).clamp(min=1)


class QWenLMHeadModel(ChatMixin, CausalLM):
    """The decoder and its language head."""

    config_class = QWenConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["QWenBlock"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq", r"attn\.masked_bias"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012
    DECODER = QWenModel

    def default_template(self, tokenizer: Any) -> str:
        """Return the template of the chat models."""
        return "qwen_chat"


FAMILY = Family(QWenConfig, (QWenModel,), (QWenLMHeadModel,), QWenTokenizer)
