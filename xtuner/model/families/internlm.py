"""InternLM (7B, 20B): Llama's names, biases on the four attention projections, dynamic-NTK rotation by default."""

from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from xtuner.model.families.chat import SAMPLING, ChatMixin
from xtuner.model.families.decoder import CausalLM, Decoder
from xtuner.model.families.family import Family
from xtuner.model.families.layer import Attention, DecoderLayer
from xtuner.model.families.llama import LlamaKeys, SeparateAttention
from xtuner.model.families.rope import Rope
from xtuner.model.tokenizers.internlm import InternLMTokenizer


@strict
class InternLMConfig(LlamaKeys):
    """Keys of the original config.json. Those that only the 20B files carry (rope_theta, num_key_value_heads) are kept
    but mean nothing, as in the original code."""

    model_type = "internlm"
    UNKNOWN: ClassVar[Mapping[str, str]] = {"rope_scaling": "InternLM says under `rotary` how positions are scaled"}

    vocab_size: int = 103168
    bias: bool = True
    """Whether q, k, v and o have one."""
    rotary: dict[str, Any] | None = None
    """{"base", "type": "origin" | "dynamic", "scaling_factor"}; None means {10000, "dynamic", 1.0}."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse what the family does not know."""
        if (self.rotary or {}).get("type", "dynamic") not in ("origin", "dynamic"):
            raise ValueError(f"rotary must be of the type origin or dynamic: {self.rotary}")
        super().__post_init__(**kwargs)


class InternLMDecoderLayer(DecoderLayer):
    """The layer under Llama's names."""

    def build_attention(self, config: InternLMConfig, layer_idx: int) -> Attention:
        """Make the attention: every head has its own keys and values."""
        heads = config.num_attention_heads
        return SeparateAttention(config, layer_idx, num_key_value_heads=heads, bias=config.bias)


class InternLMModel(Decoder):
    """The decoder: token ids to hidden states."""

    config_class = InternLMConfig
    LAYER = InternLMDecoderLayer

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

    DECODER = InternLMModel
    TEMPLATE = "internlm_chat"
    CHAT_SAMPLING = SAMPLING


FAMILY = Family(InternLMConfig, (InternLMModel,), (InternLMForCausalLM,), InternLMTokenizer)
