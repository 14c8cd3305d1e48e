"""The parts of a decoder layer that the families share: norm, gated MLP, attention, and how they are joined."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from xtuner.model.families.place import PositionEncoding
from xtuner.ops.attention import eager_attention


class RMSNorm(nn.Module):
    """Root mean square norm, computed in fp32 (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Norm the last dimension of (..., D)."""
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)); `NAMES` are those of gate, up and down in the checkpoints."""

    NAMES: ClassVar[tuple[str, str, str]] = ("gate_proj", "up_proj", "down_proj")

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation: str = "silu", *, bias: bool = False
    ) -> None:
        super().__init__()
        gate, up, down = self.NAMES
        self.add_module(gate, nn.Linear(hidden_size, intermediate_size, bias=bias))
        self.add_module(up, nn.Linear(hidden_size, intermediate_size, bias=bias))
        self.add_module(down, nn.Linear(intermediate_size, hidden_size, bias=bias))
        self.act_fn = ACT2FN[activation]

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, up, down = (getattr(self, name) for name in self.NAMES)
        mixed: Tensor = down(self.act_fn(gate(hidden)) * up(hidden))
        return mixed


class Attention(nn.Module, ABC):
    """Causal attention whose G key/value heads serve H / G query heads each.

    A family says how its weights make queries, keys and values (`project`).
    """

    OUTPUT: ClassVar[str] = "o_proj"
    """What the matrix that follows is called in the checkpoints: (B, T, H * d) -> (B, T, D)."""
    is_causal = True
    dropout: float = 0.0
    """Share of the attention weights that is dropped in training."""

    def __init__(
        self, config: PreTrainedConfig, layer_idx: int, *, num_heads: int, num_key_value_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads
        self.num_key_value_groups = num_heads // num_key_value_heads
        self.head_dim = head_dim
        self.scaling = head_dim**-0.5

    @abstractmethod
    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> queries (B, H, T, d), keys and values (B, G, T, d)."""

    def split_heads(self, states: Tensor) -> Tensor:
        """(B, T, n * d) -> (B, n, T, d)."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        position: PositionEncoding,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D) and, from the eager function, the weights (B, H, T, S)."""
        query, key, value = self.project(hidden)
        query = position.query(query)
        if not position.late:
            key = position.key(key)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if position.late:
            key = position.key(key)
        if key.shape[-1] > value.shape[-1]:  # an encoding may add columns, and kernels want one width
            value = functional.pad(value, (0, key.shape[-1] - value.shape[-1]))
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dropout = self.dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        output = getattr(self, self.OUTPUT)
        return output(mixed[..., : self.head_dim].flatten(2)), weights


class DecoderLayer(GradientCheckpointingLayer, ABC):
    """Attention and MLP, each behind its norm and beside a residual; `NAMES` are the names of the four parts."""

    NAMES: ClassVar[tuple[str, str, str, str]] = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    residual_scale: float = 1.0
    """What the branches are multiplied by before they are added."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        blocks = (self.build_attention(config, layer_idx), self.build_mlp(config, layer_idx))
        parts = (*blocks, self.build_norm(config), self.build_norm(config))
        for name, part in zip(self.NAMES, parts, strict=True):
            self.add_module(name, part)

    @abstractmethod
    def build_attention(self, config: Any, layer_idx: int) -> Attention:
        """Make the attention of this layer."""

    def build_mlp(self, config: Any, layer_idx: int) -> nn.Module:
        """Make the MLP of this layer: (B, T, D) -> (B, T, D)."""
        return GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act)

    @staticmethod
    def build_norm(config: Any) -> nn.Module:
        """Make one of the norms of the model."""
        return RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        """(B, T, D) -> (B, T, D); `kwargs` go to the attention."""
        attention, mlp, attention_norm, mlp_norm = (getattr(self, name) for name in self.NAMES)
        branch = attention(attention_norm(hidden), **kwargs)[0]
        hidden = hidden + (branch if self.residual_scale == 1 else branch * self.residual_scale)
        branch = mlp(mlp_norm(hidden))
        return hidden + (branch if self.residual_scale == 1 else branch * self.residual_scale)
