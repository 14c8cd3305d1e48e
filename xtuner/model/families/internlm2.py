"""InternLM2 and InternLM2.5: a Llama-like decoder with fused query/key/value rows, grouped per key/value head.

Parameter names are those of the published checkpoints (https://arxiv.org/abs/2403.17297), so files, adapters and
other programs need no renaming.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils import can_return_tuple

from xtuner.model.families.chat import SAMPLING, ChatMixin
from xtuner.model.families.decoder import CausalLM, Decoder, PreTrainedDecoder
from xtuner.model.families.family import Family
from xtuner.model.families.layer import Attention, DecoderLayer, GatedMLP
from xtuner.model.families.llama import GroupedKeys
from xtuner.model.tokenizers.internlm2 import InternLM2Tokenizer


@strict
class InternLM2Config(GroupedKeys):
    """Keys of the original config.json. `pretraining_tp` cuts products into parts and changes nothing."""

    model_type = "internlm2"

    vocab_size: int = 103168
    bias: bool = True
    """Whether wqkv and wo have one."""


class InternLM2MLP(GatedMLP):
    """Gated MLP: w2(act(w1(x)) * w3(x))."""

    NAMES = ("w1", "w3", "w2")


class InternLM2Attention(Attention):
    """Grouped-query attention; rows of wqkv are, per key/value head: its query heads, its key, its value."""

    OUTPUT = "wo"

    def __init__(self, config: InternLM2Config, layer_idx: int) -> None:
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        assert groups is not None
        size = config.hidden_size // heads
        super().__init__(config, layer_idx, num_heads=heads, num_key_value_heads=groups, head_dim=size)
        self.wqkv = nn.Linear(config.hidden_size, (heads + 2 * groups) * size, bias=config.bias)
        self.wo = nn.Linear(heads * size, config.hidden_size, bias=config.bias)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> queries (B, H, T, d), keys and values (B, G, T, d)."""
        grouped = self.wqkv(hidden).unflatten(-1, (-1, self.num_key_value_groups + 2, self.head_dim))
        query = grouped[..., : self.num_key_value_groups, :].flatten(2, 3)
        key, value = grouped[..., -2, :], grouped[..., -1, :]
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


class InternLM2DecoderLayer(DecoderLayer):
    """The layer under the names of the checkpoints."""

    NAMES = ("attention", "feed_forward", "attention_norm", "ffn_norm")

    def build_attention(self, config: InternLM2Config, layer_idx: int) -> Attention:
        """Make the attention."""
        return InternLM2Attention(config, layer_idx)

    def build_mlp(self, config: InternLM2Config, layer_idx: int) -> nn.Module:
        """Make the MLP."""
        return InternLM2MLP(config.hidden_size, config.intermediate_size, config.hidden_act)


class InternLM2Model(Decoder):
    """The decoder: token ids to hidden states."""

    config_class = InternLM2Config
    LAYER = InternLM2DecoderLayer
    EMBEDDING = "tok_embeddings"


class InternLM2ForCausalLM(ChatMixin, CausalLM):
    """The decoder and its output head, which the checkpoints call `output`."""

    DECODER = InternLM2Model
    HEAD = "output"
    _tied_weights_keys = {"output.weight": "model.tok_embeddings.weight"}  # noqa: RUF012
    TEMPLATE = "internlm2_chat"
    CHAT_SAMPLING = SAMPLING


class InternLM2ForRewardModel(PreTrainedDecoder):
    """The decoder and a head that judges: its number at the last token of a conversation is the score."""

    config_class = InternLM2Config

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutputWithPast:
        """Give the scores (B, 1) as `logits`, read at the last position that `attention_mask` (B, T) does not hide."""
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hidden = outputs.last_hidden_state
        last = torch.full(hidden.shape[:1], hidden.shape[1] - 1, device=hidden.device)
        if attention_mask is not None:
            last = attention_mask.long().cumsum(dim=1).argmax(dim=1)
        ends = hidden[torch.arange(len(last), device=hidden.device), last]
        return SequenceClassifierOutputWithPast(
            logits=self.v_head(ends),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def get_score(self, tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]]) -> float:
        """Judge a conversation in the form {"role", "content"}, spelled by the tokenizer's chat template.

        The checkpoints were trained to judge at a token of their own, `reward_token_id`.
        """
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        assert isinstance(text, str)
        ids = tokenizer.encode(text, add_special_tokens=False)
        token = getattr(self.config, "reward_token_id", None)
        ids = ids if token is None else [*ids, token]
        return float(self(torch.tensor([ids], device=self.device)).logits)


FAMILY = Family(
    InternLM2Config,
    (InternLM2Model,),
    (InternLM2ForCausalLM,),
    InternLM2Tokenizer,
    reward=(InternLM2ForRewardModel,),
)
