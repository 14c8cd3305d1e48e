"""Baichuan and Baichuan2: the 7B forms rotate, the 13B forms bias (ALiBi), and the second generation norms its head.

All four have the model_type `baichuan`. A config without max_position_embeddings is of a 13B form; Baichuan2
(https://arxiv.org/abs/2309.10305) is known by its vocabulary or by the tokenizer class that its config names.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import nn

from xtuner.model.families.alibi import build_alibi
from xtuner.model.families.chat import ChatMixin
from xtuner.model.families.decoder import CausalLM, Decoder
from xtuner.model.families.family import Family
from xtuner.model.families.layer import Attention, DecoderLayer
from xtuner.model.families.llama import FusedAttention, LlamaKeys
from xtuner.model.families.norm_head import NormHead
from xtuner.model.families.place import Places, PositionEncoding
from xtuner.model.families.rope import Rope
from xtuner.model.tokenizers.baichuan import BaiChuanTokenizer, BaichuanTokenizer

VOCABULARIES = {64000: False, 125696: True}
"""Sizes of the published models -> whether they are of the second generation."""
BAICHUAN2_KEYS = ("tokenizer_class", "z_loss_weight")
"""Keys that only configs of the second generation have."""


@strict
class BaichuanConfig(LlamaKeys):
    """Keys of the original config.json."""

    model_type = "baichuan"
    UNKNOWN: ClassVar[Mapping[str, str]] = {
        "rope_scaling": "the positions of Baichuan are not scaled by anything",
        "z_loss_weight": "a loss for large logits is not known here; set it to 0 in config.json to go without",
    }

    vocab_size: int = 64000
    max_position_embeddings: int | None = None
    """What the model reads, in tokens. A 13B file calls it model_max_length, and so does what we write."""
    model_max_length: int = 4096
    norm_head: bool | None = None
    """Whether rows of the head are brought to length 1. Not in the original files, where it has to be guessed; what we
    write says it."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Tell the four forms apart."""
        self.alibi = self.max_position_embeddings is None
        if self.max_position_embeddings is None:
            self.max_position_embeddings = self.model_max_length
        if self.norm_head is None:
            names = self.architectures or []
            signs = any(kwargs.get(key) is not None for key in BAICHUAN2_KEYS)
            signs = signs or (not self.alibi and "BaichuanForCausalLM" in names)  # the first 7B is spelled BaiChuan
            self.norm_head = VOCABULARIES.get(self.vocab_size, signs)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Give the keys as original readers expect them; they too tell the forms apart by them."""
        values = super().to_dict()
        if values.pop("alibi", False):
            values.pop("max_position_embeddings", None)
        return values


class BaichuanAttention(FusedAttention):
    """Attention without biases."""

    FUSED = "W_pack"


class BaichuanLayer(DecoderLayer):
    """The layer under Llama's names."""

    def build_attention(self, config: BaichuanConfig, layer_idx: int) -> Attention:
        """Make the attention."""
        return BaichuanAttention(config, layer_idx, bias=False, output_bias=False)


class BaichuanModel(Decoder):
    """The decoder: token ids to hidden states."""

    config_class = BaichuanConfig
    LAYER = BaichuanLayer

    def rope(self) -> Rope:
        """Return the rotation of the 7B forms, which nothing in their configs changes."""
        return Rope(size=self.config.hidden_size // self.config.num_attention_heads)

    def encode_positions(self, at: Places) -> PositionEncoding:
        """Rotate, or in the 13B forms bias the scores."""
        if not self.config.alibi:
            return super().encode_positions(at)
        heads = self.config.num_attention_heads
        return build_alibi(heads, (self.config.hidden_size // heads) ** -0.5, at.positions)


class BaichuanForCausalLM(ChatMixin, CausalLM):
    """The decoder and its language head."""

    DECODER = BaichuanModel

    def default_template(self, tokenizer: Any) -> str:
        """Return the template of the chat models of this generation."""
        return "baichuan2_chat" if self.config.norm_head else "baichuan_chat"

    def build_head(self) -> nn.Linear:
        """Make the head of this generation."""
        kind = NormHead if self.config.norm_head else nn.Linear
        return kind(self.config.hidden_size, self.config.vocab_size, bias=False)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another head in place; a plain one, as a change of the vocabulary makes, is normed all the same."""
        if self.config.norm_head and type(new_embeddings) is nn.Linear:
            new_embeddings = NormHead.around(new_embeddings)
        super().set_output_embeddings(new_embeddings)


class BaiChuanForCausalLM(BaichuanForCausalLM):
    """The first 7B model, whose configs spell it so; other programs tell the forms apart by that."""


FAMILY = Family(
    BaichuanConfig,
    (BaichuanModel,),
    (BaichuanForCausalLM, BaiChuanForCausalLM),
    BaichuanTokenizer,
    (BaiChuanTokenizer,),
)
