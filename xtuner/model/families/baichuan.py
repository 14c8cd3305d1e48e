"""Baichuan and Baichuan2: the 7B forms rotate, the 13B forms bias (ALiBi), and the second generation norms its head.

All four have the model_type `baichuan`. A config without max_position_embeddings is of a 13B form; Baichuan2
(https://arxiv.org/abs/2309.10305) is known by its vocabulary or by the tokenizer class that its config names.
"""

from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from xtuner.model.families.alibi import build_alibi
from xtuner.model.families.chat import ChatMixin
from xtuner.model.families.decoder import CausalLM, Decoder
from xtuner.model.families.family import Family, FamilyConfig
from xtuner.model.families.layer import Attention, DecoderLayer, GatedMLP, PositionEncoding, RMSNorm
from xtuner.model.families.norm_head import NormHead
from xtuner.model.families.rope import Rope
from xtuner.model.tokenizers.baichuan import BaiChuanTokenizer, BaichuanTokenizer

VOCABULARIES = {64000: False, 125696: True}
"""Sizes of the published models -> whether they are of the second generation."""
BAICHUAN2_KEYS = ("tokenizer_class", "z_loss_weight")
"""Keys that only configs of the second generation have."""


@strict
class BaichuanConfig(FamilyConfig):
    """Keys of the original config.json."""

    model_type = "baichuan"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 64000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int | None = None
    """What the model reads, in tokens. A 13B file calls it model_max_length, and so does what we write."""
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    model_max_length: int = 4096
    norm_head: bool | None = None
    """Whether rows of the head are brought to length 1. Not in the original files, where it has to be guessed; what we
    write says it."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Tell the four forms apart."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("num_attention_heads does not divide hidden_size")
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


class BaichuanAttention(Attention):
    """Attention whose W_pack holds the rows of queries, keys and values one after another."""

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        size, heads = config.hidden_size, config.num_attention_heads
        super().__init__(config, layer_idx, num_heads=heads, num_key_value_heads=heads, head_dim=size // heads)
        self.W_pack = nn.Linear(size, 3 * size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> queries, keys and values, (B, H, T, d) each."""
        query, key, value = self.W_pack(hidden).chunk(3, dim=-1)
        return self.split_heads(query), self.split_heads(key), self.split_heads(value)

    def merge(self, mixed: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.o_proj(mixed)


class BaichuanLayer(DecoderLayer):
    """The layer under Llama's names."""

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__(
            BaichuanAttention(config, layer_idx),
            GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
        )


class BaichuanModel(Decoder):
    """The decoder: token ids to hidden states."""

    config_class = BaichuanConfig
    _no_split_modules = ["BaichuanLayer"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(BaichuanLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def rope(self) -> Rope:
        """Return the rotation of the 7B forms, which nothing in their configs changes."""
        return Rope(size=self.config.hidden_size // self.config.num_attention_heads)

    def encode_positions(
        self,
        positions: Tensor,
        dtype: torch.dtype,
        cu_seqlens: Tensor | None,
        key_positions: Tensor | None,
        padding: Tensor | None = None,
    ) -> PositionEncoding:
        """Rotate, or in the 13B forms bias the scores."""
        if not self.config.alibi:
            return super().encode_positions(positions, dtype, cu_seqlens, key_positions, padding)
        heads = self.config.num_attention_heads
        return build_alibi(heads, (self.config.hidden_size // heads) ** -0.5, positions)


class BaichuanForCausalLM(ChatMixin, CausalLM):
    """The decoder and its language head."""

    config_class = BaichuanConfig
    _no_split_modules = ["BaichuanLayer"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012
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
