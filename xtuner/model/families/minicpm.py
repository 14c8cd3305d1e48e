"""MiniCPM 1B and 2B: Llama's keys, with every branch scaled for width and depth (https://arxiv.org/abs/2404.06395)."""

from collections.abc import Mapping
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor

from xtuner.model.families.chat import ChatMixin
from xtuner.model.families.decoder import CausalLM, Decoder
from xtuner.model.families.family import Family
from xtuner.model.families.llama import LlamaLayer, LlamaLikeConfig


@strict
class MiniCPMConfig(LlamaLikeConfig):
    """Keys of the original config.json, read and written under their original names."""

    model_type = "minicpm"
    UNKNOWN: ClassVar[Mapping[str, str]] = {
        "num_experts": "MiniCPM with experts (MiniCPM-MoE) is not known here",
        "sparse_config": "the sparse attention of MiniCPM4 is not known here",
        "use_sliding_window": "a sliding window is not known here",
    }

    tie_word_embeddings: bool = True
    scale_emb: float | int = 1
    """Embeddings are multiplied by this."""
    scale_depth: float | int = 1
    """Residual branches are multiplied by scale_depth / sqrt(number of layers)."""
    dim_model_base: int = 1
    """The head sees the final states divided by hidden_size / dim_model_base."""

    @property
    def logits_scaling(self) -> float:
        """What logits are divided by; the name is that of Granite's key, by which heads are known to `model.head`."""
        return self.hidden_size / self.dim_model_base


class MiniCPMDecoderLayer(LlamaLayer):
    """Llama's layer with scaled branches."""

    def __init__(self, config: MiniCPMConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.residual_scale = config.scale_depth / config.num_hidden_layers**0.5


class MiniCPMModel(Decoder):
    """The decoder: token ids to hidden states."""

    config_class = MiniCPMConfig
    LAYER = MiniCPMDecoderLayer

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        return super().embed(input_ids) * self.config.scale_emb


class MiniCPMForCausalLM(ChatMixin, CausalLM):
    """The decoder and its head, tied to the embedding unless config.json says otherwise."""

    DECODER = MiniCPMModel
    TEMPLATE = "minicpm"

    def to_logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        return super().to_logits(hidden) / self.config.logits_scaling


FAMILY = Family(MiniCPMConfig, (MiniCPMModel,), (MiniCPMForCausalLM,))
