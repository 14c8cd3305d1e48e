"""DeepSeek-MoE (https://arxiv.org/abs/2401.06066): Llama's keys, with shared and routed experts in most layers."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization

from xtuner.model.families.decoder import CausalLM, Decoder
from xtuner.model.families.family import Family
from xtuner.model.families.layer import GatedMLP
from xtuner.model.families.llama import LlamaLayer, LlamaLikeConfig
from xtuner.ops.expert import balance, run_experts


@strict
class DeepseekConfig(LlamaLikeConfig):
    """Keys of the original config.json, read and written under their original names."""

    model_type = "deepseek"
    UNKNOWN: ClassVar[Mapping[str, str]] = {
        "kv_lora_rank": "latent attention is that of DeepSeek-V2, whose model_type is deepseek_v2",
        "n_group": "groups of experts are those of DeepSeek-V2, whose model_type is deepseek_v2",
    }

    vocab_size: int = 102400
    num_hidden_layers: int = 30
    bos_token_id: int | None = 100000
    eos_token_id: int | list[int] | None = 100001
    moe_intermediate_size: int = 1407
    n_shared_experts: int | None = None
    n_routed_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_layer_freq: int = 1
    """Of so many layers one has experts."""
    first_k_dense_replace: int = 0
    """So many layers at the beginning have none."""
    norm_topk_prob: bool = False
    """Whether the weights of the chosen experts are brought to the sum 1."""
    scoring_func: str = "softmax"
    aux_loss_alpha: float | int = 0.001
    seq_aux: bool = True
    """Whether experts are balanced within every sequence, instead of within what is computed at once."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse what the family does not know."""
        if self.scoring_func != "softmax":
            raise ValueError(f"scoring_func must be softmax: {self.scoring_func}")
        if kwargs.get("topk_method", "greedy") != "greedy" or kwargs.get("routed_scaling_factor", 1) != 1:
            raise ValueError("topk_method must be greedy, and routed_scaling_factor 1, as in DeepSeek-MoE")
        if self.n_routed_experts is not None and not 0 < (self.num_experts_per_tok or 0) <= self.n_routed_experts:
            raise ValueError("num_experts_per_tok must be at least 1, and at most n_routed_experts")
        super().__post_init__(**kwargs)

    def has_experts(self, layer_idx: int) -> bool:
        """Whether the MLP of a layer is a mixture of experts."""
        late = layer_idx >= self.first_k_dense_replace and layer_idx % self.moe_layer_freq == 0
        return self.n_routed_experts is not None and late


class DeepseekGate(nn.Module):
    """Chooses experts for tokens."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        assert config.num_experts_per_tok is not None
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., D) -> scores (..., E), and of the k experts chosen their weights and indices (..., k); fp32."""
        scores = functional.linear(hidden, self.weight.to(hidden.dtype)).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = scores.topk(self.top_k, dim=-1, sorted=False)
        if self.top_k > 1 and self.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return scores, weights, chosen


class DeepseekMoE(nn.Module):
    """Routed experts, of which every token sees a few, and shared ones that every token sees."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        size, width, act = config.hidden_size, config.moe_intermediate_size, config.hidden_act
        self.alpha, self.by_sequence = config.aux_loss_alpha, config.seq_aux
        self.experts = nn.ModuleList(GatedMLP(size, width, act) for _ in range(config.n_routed_experts))
        self.gate = DeepseekGate(config)
        if config.n_shared_experts is not None:
            self.shared_experts = GatedMLP(size, width * config.n_shared_experts, act)

    def forward(self, hidden: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D) and, in training, the penalty (S,) for experts that are busier than others.

        `cu_seqlens` (S + 1,) are the borders of a packed row (B = 1); else every row is a sequence.
        """
        scores, weights, chosen = self.gate(hidden)
        mixed = run_experts(self.experts, hidden.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1))
        mixed = mixed.view_as(hidden)
        if hasattr(self, "shared_experts"):
            mixed = mixed + self.shared_experts(hidden)
        if not self.training or self.alpha <= 0:
            return mixed, None
        if not self.by_sequence:
            num_sequences = hidden.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
            penalty = balance(scores.flatten(0, 1)[None], chosen.flatten(0, 1)[None]).expand(num_sequences)
        else:
            penalty = balance(scores, chosen, cu_seqlens)
        return mixed, penalty * self.alpha


class DeepseekDecoderLayer(LlamaLayer):
    """Llama's layer, whose MLP may be a mixture of experts."""

    def build_mlp(self, config: DeepseekConfig, layer_idx: int) -> nn.Module:
        """Make the MLP, or the experts."""
        return DeepseekMoE(config) if config.has_experts(layer_idx) else super().build_mlp(config, layer_idx)

    def forward(  # type: ignore[override]
        self, hidden: Tensor, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, T, D) -> (B, T, D), and the penalty (S,) of the experts if there is one."""
        attention, mlp, attention_norm, mlp_norm = (getattr(self, name) for name in self.NAMES)
        hidden = hidden + attention(attention_norm(hidden), **kwargs)[0]
        if not isinstance(mlp, DeepseekMoE):
            return hidden + mlp(mlp_norm(hidden))
        mixed, penalty = mlp(mlp_norm(hidden), kwargs.get("cu_seq_lens_q"))
        return hidden + mixed if penalty is None else (hidden + mixed, penalty)


class DeepseekModel(Decoder):
    """The decoder: token ids to hidden states."""

    config_class = DeepseekConfig
    LAYER = DeepseekDecoderLayer
    _can_compile_fullgraph = False  # which experts are asked is known on the host only

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeepseekGate):
            initialization.normal_(module.weight, mean=0.0, std=self.config.initializer_range)


class DeepseekForCausalLM(CausalLM):
    """The decoder and its language head."""

    DECODER = DeepseekModel


FAMILY = Family(DeepseekConfig, (DeepseekModel,), (DeepseekForCausalLM,))
