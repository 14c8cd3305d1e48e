"""MiniCPM 1B and 2B: Llama's keys, with every branch scaled for width and depth (https://arxiv.org/abs/2404.06395)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from xtuner.model.families.chat import ChatMixin
from xtuner.model.families.decoder import CausalLM, Decoder
from xtuner.model.families.family import Family
from xtuner.model.families.layer import DecoderLayer, GatedMLP, RMSNorm
from xtuner.model.families.llama import LlamaLikeConfig, build_attention


@strict
class MiniCPMConfig(LlamaLikeConfig):
    """Keys of the original config.json, read and written under their original names."""

    model_type = "minicpm"

    tie_word_embeddings: bool = True
    scale_emb: float | int = 1
    """Embeddings are multiplied by this."""
    scale_depth: float | int = 1
    """Residual branches are multiplied by scale_depth / sqrt(number of layers)."""
    dim_model_base: int = 1
    """The head sees the final states divided by hidden_size / dim_model_base."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse the later models that kept the name."""
        if kwargs.get("num_experts"):
            raise ValueError("MiniCPM with experts (MiniCPM-MoE) is not known here")
        super().__post_init__(**kwargs)

    @property
    def logits_scaling(self) -> float:
        """What logits are divided by; the name is that of Granite's key, by which heads are known to `model.head`."""
        return self.hidden_size / self.dim_model_base


class MiniCPMDecoderLayer(DecoderLayer):
    """Llama's layer with scaled branches."""

    def __init__(self, config: MiniCPMConfig, layer_idx: int) -> None:
        super().__init__(
            build_attention(config, layer_idx),
            GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
        )
        self.residual_scale = config.scale_depth / config.num_hidden_layers**0.5


class MiniCPMModel(Decoder):
    """The decoder: token ids to hidden states."""

    config_class = MiniCPMConfig
    _no_split_modules = ["MiniCPMDecoderLayer"]  # noqa: RUF012

    def __init__(self, config: MiniCPMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(MiniCPMDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        return super().embed(input_ids) * self.config.scale_emb


class MiniCPMForCausalLM(ChatMixin, CausalLM):
    """The decoder and its head, tied to the embedding unless config.json says otherwise."""

    config_class = MiniCPMConfig
    _no_split_modules = ["MiniCPMDecoderLayer"]  # noqa: RUF012
    DECODER = MiniCPMModel

    def default_template(self, tokenizer: Any) -> str:
        """Return the template of the chat models."""
        return "minicpm"

    def to_logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        return super().to_logits(hidden) / self.config.logits_scaling


FAMILY = Family(MiniCPMConfig, (MiniCPMModel,), (MiniCPMForCausalLM,))
