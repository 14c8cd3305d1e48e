"""InternLM (7B, 20B): Llama's names, biases on the four attention projections, dynamic-NTK rotation by default."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import nn

from xtuner.model.families.chat import SAMPLING, ChatMixin
from xtuner.model.families.decoder import CausalLM, Decoder
from xtuner.model.families.family import Family, FamilyConfig
from xtuner.model.families.layer import DecoderLayer, GatedMLP, RMSNorm
from xtuner.model.families.llama import SeparateAttention
from xtuner.model.families.rope import Rope
from xtuner.model.tokenizers.internlm import InternLMTokenizer


@strict
class InternLMConfig(FamilyConfig):
    """Keys of the original config.json. Those that only the 20B files carry (rope_theta, num_key_value_heads) are kept
    but mean nothing, as in the original code."""

    model_type = "internlm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 103168
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    bias: bool = True
    """Whether q, k, v and o have one."""
    rotary: dict[str, Any] | None = None
    """{"base", "type": "origin" | "dynamic", "scaling_factor"}; None means {10000, "dynamic", 1.0}."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse what the family does not know."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("num_attention_heads does not divide hidden_size")
        if (self.rotary or {}).get("type", "dynamic") not in ("origin", "dynamic"):
            raise ValueError(f"rotary must be of the type origin or dynamic: {self.rotary}")
        super().__post_init__(**kwargs)


class InternLMDecoderLayer(DecoderLayer):
    """The layer under Llama's names."""

    def __init__(self, config: InternLMConfig, layer_idx: int) -> None:
        heads = config.num_attention_heads
        attention = SeparateAttention(
            config,
            layer_idx,
            num_heads=heads,
            num_key_value_heads=heads,
            head_dim=config.hidden_size // heads,
            bias=config.bias,
        )
        super().__init__(
            attention,
            GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
        )


class InternLMModel(Decoder):
    """The decoder: token ids to hidden states."""

    config_class = InternLMConfig
    _no_split_modules = ["InternLMDecoderLayer"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012

    def __init__(self, config: InternLMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(InternLMDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def rope(self) -> Rope:
        """Return what `rotary` says: "dynamic" widens the base beyond max_position_embeddings."""
        config, rotary = self.config, self.config.rotary or {}
        return Rope(
            size=config.hidden_size // config.num_attention_heads,
            base=float(rotary.get("base", 10000)),
            scaling="dynamic" if rotary.get("type", "dynamic") == "dynamic" else None,
            factor=float(rotary.get("scaling_factor", 1.0)),
            limit=config.max_position_embeddings,
        )


class InternLMForCausalLM(ChatMixin, CausalLM):
    """The decoder and its language head."""

    config_class = InternLMConfig
    _no_split_modules = ["InternLMDecoderLayer"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012
    DECODER = InternLMModel
    CHAT_SAMPLING = SAMPLING

    def default_template(self, tokenizer: Any) -> str:
        """Return the template of the chat models."""
        return "internlm_chat"


FAMILY = Family(InternLMConfig, (InternLMModel,), (InternLMForCausalLM,), InternLMTokenizer)
