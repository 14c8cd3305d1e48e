"""ChatGLM2 and ChatGLM3 (https://arxiv.org/abs/2406.12793): fused matrices, and a rotation of half of every head.

Unlike elsewhere the head stands inside the decoder: its weight is `transformer.output_layer.weight`.
"""

from collections.abc import Iterator, Mapping
from inspect import unwrap
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from xtuner.errors import UserError
from xtuner.model.families.chat import SAMPLING, ChatMixin
from xtuner.model.families.decoder import CausalLM, Decoder
from xtuner.model.families.family import Family, FamilyConfig
from xtuner.model.families.layer import Attention, DecoderLayer, RMSNorm
from xtuner.model.families.place import Places, PositionEncoding
from xtuner.model.families.rope import Rotary, rotary_tables
from xtuner.model.tokenizers.chatglm import ChatGLMTokenizer, is_second


@strict
class ChatGLMConfig(FamilyConfig):
    """Keys of the original config.json.

    Some change nothing: `original_rope` is never looked at; `apply_query_key_layer_scaling`, `bias_dropout_fusion` and
    `attention_softmax_in_fp32` are about rounding in half precision; with `fp32_residual_connection` the original runs
    in fp32 alone, where it makes no difference.
    """

    model_type = "chatglm"
    UNKNOWN: ClassVar[Mapping[str, str]] = {
        "position_encoding_2d": "the first ChatGLM (chatglm-6b) is not known here",
        "quantization_bit": "its weights are quantised; use the original model, and quantise it while loading",
        "pre_seq_len": "a P-tuning prefix is not known here",
        "vision_config": "a model that sees pictures is not known here",
        "interleaved_qkv": "rows of queries, keys and values in turns are not known here",
        "rope_scaling": "ChatGLM says by rope_ratio how its positions are scaled",
    }
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "max_position_embeddings": "seq_length",
        "intermediate_size": "ffn_hidden_size",
        "head_dim": "kv_channels",
        "rms_norm_eps": "layernorm_epsilon",
    }

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int | None = 128
    num_attention_heads: int = 32
    seq_length: int = 2048
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layernorm_epsilon: float = 1e-5
    rmsnorm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    """Whether the residual is what the norm made, instead of what it was given."""
    post_layer_norm: bool = True
    """Whether a norm follows the last layer."""
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    multi_query_attention: bool = False
    """Without it every head has its own keys and values, and the rows of query_key_value are arranged by head."""
    multi_query_group_num: int = 1
    rope_ratio: float | int = 1
    """Of the long versions: the base of the rotation is 10000 times this, or positions are divided by it."""
    interpolated: bool | None = None
    """Whether positions are divided (chatglm2-6b-32k; https://arxiv.org/abs/2306.15595). The original files leave it to
    the program that comes with them: theirs is known by its name. What we write says it."""
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the size of a head; refuse what the family does not know."""
        if self.interpolated is None:
            names = [str(kwargs.get(key, "")) for key in ("_name_or_path", "name_or_path")]
            self.interpolated = is_second(next((name for name in names if "chatglm" in name.lower()), ""))
        if self.kv_channels is None:
            self.kv_channels = self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads or self.kv_channels % 4:
            raise ValueError("num_attention_heads, multi_query_group_num and kv_channels do not divide each other")
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Give the keys as original readers expect them, who know the model by the name of its decoder."""
        values = super().to_dict()
        if values.get("architectures"):
            values["architectures"] = ["ChatGLMModel"]
        if self.rope_ratio == 1:  # then it makes no difference
            values.pop("interpolated", None)
        return values

    @property
    def num_key_value_heads(self) -> int:
        """How many heads have their own keys and values."""
        return self.multi_query_group_num if self.multi_query_attention else self.num_attention_heads


class ChatGLMAttention(Attention):
    """Attention over one fused matrix for queries, keys and values."""

    OUTPUT = "dense"

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.kv_channels
        assert size is not None
        super().__init__(config, layer_idx, num_heads=heads, num_key_value_heads=groups, head_dim=size)
        self.dropout = config.attention_dropout
        self.by_head = not config.multi_query_attention
        bias = config.add_bias_linear or config.add_qkv_bias
        self.query_key_value = nn.Linear(config.hidden_size, (heads + 2 * groups) * size, bias=bias)
        self.dense = nn.Linear(heads * size, config.hidden_size, bias=config.add_bias_linear)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> queries (B, H, T, d), keys and values (B, G, T, d)."""
        fused = self.split_heads(self.query_key_value(hidden))
        if self.by_head:  # query, key and value of one head after another
            return fused[:, 0::3], fused[:, 1::3], fused[:, 2::3]
        query, key, value = fused.split((self.num_heads, *2 * (self.num_key_value_heads,)), dim=1)
        return query, key, value


class ChatGLMMLP(nn.Module):
    """Gated MLP whose first matrix is gate and up, one after the other."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        bias = config.add_bias_linear
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=bias)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, up = self.dense_h_to_4h(hidden).chunk(2, dim=-1)
        mixed: Tensor = self.dense_4h_to_h(functional.silu(gate) * up)
        return mixed


class ChatGLMLayer(DecoderLayer):
    """The layer under the names of the checkpoints."""

    NAMES = ("self_attention", "mlp", "input_layernorm", "post_attention_layernorm")

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.residual_behind_norm = config.apply_residual_connection_post_layernorm

    def build_attention(self, config: ChatGLMConfig, layer_idx: int) -> Attention:
        """Make the attention."""
        return ChatGLMAttention(config, layer_idx)

    def build_mlp(self, config: ChatGLMConfig, layer_idx: int) -> nn.Module:
        """Make the MLP."""
        return ChatGLMMLP(config)

    @staticmethod
    def build_norm(config: ChatGLMConfig) -> nn.Module:
        """Make the norm that the config names."""
        kind = RMSNorm if config.rmsnorm else nn.LayerNorm
        return kind(config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        """(B, T, D) -> (B, T, D); `kwargs` go to the attention."""
        attention, mlp, attention_norm, mlp_norm = (getattr(self, name) for name in self.NAMES)
        normed = attention_norm(hidden)
        branch = self.dropout(attention(normed, **kwargs)[0])
        hidden = branch + (normed if self.residual_behind_norm else hidden)
        normed = mlp_norm(hidden)
        return self.dropout(mlp(normed)) + (normed if self.residual_behind_norm else hidden)


class ChatGLMModel(Decoder):
    """The decoder: token ids to hidden states."""

    config_class = ChatGLMConfig
    LAYER = ChatGLMLayer
    EMBEDDING, LAYERS, NORM = "embedding.word_embeddings", "encoder.layers", "encoder.final_layernorm"
    HAS_PADDING_ROW = False
    # the last of the hidden states that are returned is the one before the last norm, as in the original code
    forward = merge_with_config_defaults(capture_outputs(unwrap(Decoder.forward), tie_last_hidden_states=False))

    def build_norm(self, config: ChatGLMConfig) -> nn.Module:
        """Make the last norm, if there is one."""
        return super().build_norm(config) if config.post_layer_norm else nn.Identity()

    def encode_positions(self, at: Places) -> PositionEncoding:
        """Turn pairs of neighbours in the first half of every head."""
        ratio, size = float(self.config.rope_ratio), self.config.kv_channels // 2
        base, stretch = (10000.0, ratio) if self.config.interpolated else (10000.0 * ratio, 1.0)
        tables = rotary_tables(at.positions, size, base, at.dtype, stretch=stretch, interleaved=True)
        return Rotary(*tables, interleaved=True)


class ChatGLMForConditionalGeneration(ChatMixin, CausalLM):
    """The decoder and the head that stands inside it."""

    base_model_prefix = "transformer"
    _tied_weights_keys = {  # noqa: RUF012
        "transformer.output_layer.weight": "transformer.embedding.word_embeddings.weight"
    }
    DECODER = ChatGLMModel
    HEAD = "transformer.output_layer"
    CHAT_SAMPLING = SAMPLING

    def default_template(self, tokenizer: Any) -> str:
        """Return the template of this generation, which is known by the tokens for roles."""
        return "chatglm3" if "<|user|>" in tokenizer.get_vocab() else "chatglm2"

    def chat(self, tokenizer: Any, query: Any, history: Any = None, **options: Any) -> Any:
        """As in `ChatMixin`; `role` may say that the words are the user's."""
        return super().chat(tokenizer, query, history, **without_role(options))

    def stream_chat(self, tokenizer: Any, query: Any, history: Any = None, **options: Any) -> Iterator[tuple[Any, ...]]:
        """As in `ChatMixin`, with `role` as in `chat`."""
        return super().stream_chat(tokenizer, query, history, **without_role(options))


def without_role(options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` without the role of the question.

    Raises:
        UserError: the answer to something else than a user's words is asked for.
    """
    role = options.get("role", "user")
    if role != "user":
        raise UserError(f"A question comes from the user, not from {role}.", "Leave role out.")
    return {key: value for key, value in options.items() if key != "role"}


# scripts for these checkpoints load the whole model with AutoModel
FAMILY = Family(ChatGLMConfig, (ChatGLMForConditionalGeneration,), (ChatGLMForConditionalGeneration,), ChatGLMTokenizer)
