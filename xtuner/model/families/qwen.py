"""Qwen, the first generation (https://arxiv.org/abs/2309.16609): answers beyond its training length by dynamic NTK
and scaled queries, both in evaluation only."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from xtuner.model.families.chat import ChatMixin
from xtuner.model.families.decoder import CausalLM, Decoder
from xtuner.model.families.family import Family, FamilyConfig
from xtuner.model.families.layer import Attention, DecoderLayer, GatedMLP
from xtuner.model.families.llama import FusedAttention
from xtuner.model.families.place import Places, PositionEncoding
from xtuner.model.families.rope import Rotary, rotary_tables, widened_rotary
from xtuner.model.tokenizers.qwen import QWenTokenizer


@strict
class QWenConfig(FamilyConfig):
    """Keys of the original config.json. Those that choose a kernel or a number format (use_flash_attn, bf16, fp16,
    fp32, softmax_in_fp32) mean nothing here."""

    model_type = "qwen"
    attribute_map: ClassVar[dict[str, str]] = {"rms_norm_eps": "layer_norm_epsilon"}
    UNKNOWN: ClassVar[Mapping[str, str]] = {
        "visual": "a model that sees pictures (Qwen-VL) is not known here",
        "audio": "a model that hears (Qwen-Audio) is not known here",
        "n_embd": "the keys are those of the first days of Qwen; take config.json of its present release",
        "use_cache_quantization": "a cache in 8 bits is not known here; set it to false in config.json",
        "rope_scaling": "Qwen says by use_dynamic_ntk whether its positions are scaled",
    }

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
        if not kwargs.get("scale_attn_weights", True):
            raise ValueError("scale_attn_weights: attention without scaled scores is not known here")
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


class QWenAttention(FusedAttention):
    """Attention whose first matrix has a bias in any case."""

    FUSED, OUTPUT = "c_attn", "c_proj"

    def __init__(self, config: QWenConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx, bias=True, output_bias=not config.no_bias)
        self.dropout = config.attn_dropout_prob


class QWenMLP(GatedMLP):
    """Gated MLP: c_proj(w1(x) * silu(w2(x)))."""

    NAMES = ("w2", "w1", "c_proj")


class QWenBlock(DecoderLayer):
    """The layer under the names of the checkpoints."""

    NAMES = ("attn", "mlp", "ln_1", "ln_2")

    def build_attention(self, config: QWenConfig, layer_idx: int) -> Attention:
        """Make the attention."""
        return QWenAttention(config, layer_idx)

    def build_mlp(self, config: QWenConfig, layer_idx: int) -> nn.Module:
        """Make the MLP."""
        return QWenMLP(config.hidden_size, config.intermediate_size // 2, bias=not config.no_bias)


class QWenModel(Decoder):
    """The decoder: token ids to hidden states."""

    config_class = QWenConfig
    LAYER = QWenBlock
    EMBEDDING, LAYERS, NORM = "wte", "h", "ln_f"
    HAS_PADDING_ROW = False

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        self.drop = nn.Dropout(config.emb_dropout_prob)

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        return self.drop(super().embed(input_ids))

    def encode_positions(self, at: Places) -> PositionEncoding:
        """Rotate; in evaluation with the base of a longer training length, and with stretched queries beyond it.

        The base is a function of how long a sequence really is, padding left out. Cached keys are turned anew as it
        grows. (What deeper layers keep of a token still is what it was when the token was read; see docs/en/chat.md.)
        """
        config = self.config
        size, base = int(config.kv_channels * config.rotary_pct), float(config.rotary_emb_base)
        if self.training or not config.use_dynamic_ntk:
            rotary = Rotary(*rotary_tables(at.positions, size, base, at.dtype))
        else:
            lengths = at.lengths() if at.padding is None else at.padding.sum(-1, keepdim=True)
            rotary = widened_rotary(size, base * ntk_alpha(lengths, config.seq_length) ** (size / (size - 2)), at)
        if self.training or not config.use_logn_attn:
            return rotary
        return LongRotary(rotary, ((at.positions + 1).log() / math.log(config.seq_length)).clamp(min=1))


def ntk_alpha(lengths: Tensor, trained: int) -> Tensor:
    """Return by how much the base grows for sequences of `lengths` tokens, of a model trained on `trained` of them."""
    return (2 ** ((lengths / trained).log2() + 1).ceil() - 1).clamp(min=1)


class QWenLMHeadModel(ChatMixin, CausalLM):
    """The decoder and its language head."""

    base_model_prefix = "transformer"
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012
    DECODER = QWenModel
    TEMPLATE = "qwen_chat"


FAMILY = Family(QWenConfig, (QWenModel,), (QWenLMHeadModel,), QWenTokenizer)
