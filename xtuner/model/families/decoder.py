"""The decoder that the families are variations of: embedding, layers, norm, and the language head on top."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from xtuner.model.families.layer import Attention, DecoderLayer
from xtuner.model.families.place import Places, PositionEncoding
from xtuner.model.families.rope import Rope, build_rotary, read_rope


class PreTrainedDecoder(PreTrainedModel):
    """What transformers needs to know about every family."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _keys_to_ignore_on_load_unexpected = [  # what some files hold follows from config.json  # noqa: RUF012
        r"rotary_(pos_)?emb\.inv_freq",
        r"attn\.masked_bias",
    ]
    _can_record_outputs = {"hidden_states": DecoderLayer, "attentions": Attention}  # noqa: RUF012


@dataclass
class DecoderOutput(BaseModelOutputWithPast):
    """What a decoder returns."""

    penalty: Tensor | None = None
    """(S,): what the layers add to the mean loss of each sequence (row, or segment of a packed row) in training."""


class Decoder(PreTrainedDecoder):
    """Token ids to hidden states.

    A family names its `config_class` and its layer, and what the parts are called in its checkpoints.
    """

    LAYER: ClassVar[type[DecoderLayer]]
    EMBEDDING: ClassVar[str] = "embed_tokens"
    LAYERS: ClassVar[str] = "layers"
    NORM: ClassVar[str] = "norm"
    HAS_PADDING_ROW: ClassVar[bool] = True
    """Whether the embedding of the padding token is left out of training."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls._no_split_modules = [cls.LAYER.__name__]
        super().__init_subclass__(**kwargs)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        padding = config.pad_token_id if self.HAS_PADDING_ROW else None
        layers = nn.ModuleList(self.LAYER(config, index) for index in range(config.num_hidden_layers))
        add_part(self, self.EMBEDDING, nn.Embedding(config.vocab_size, config.hidden_size, padding))
        add_part(self, self.LAYERS, layers)
        add_part(self, self.NORM, self.build_norm(config))
        self.post_init()

    def build_norm(self, config: Any) -> nn.Module:
        """Make what follows the last layer."""
        return self.LAYER.build_norm(config)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.get_submodule(self.EMBEDDING)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another token embedding in place."""
        self.set_submodule(self.EMBEDDING, value)

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        embedded: Tensor = self.get_input_embeddings()(input_ids)
        return embedded

    def rope(self) -> Rope:
        """Return what the config says about the rotation."""
        return read_rope(self.config)

    def encode_positions(self, at: Places) -> PositionEncoding:
        """Return how the tokens at hand know their places: by rotation unless a family says otherwise."""
        return build_rotary(self.rope(), at)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> DecoderOutput:
        """Run ids (B, T) or embeddings (B, T, D) through the layers; positions default to those after the cache."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden = inputs_embeds if inputs_embeds is not None else self.embed(cast(Tensor, input_ids))
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        length = hidden.shape[1]
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = (torch.arange(length, device=hidden.device) + seen)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        key_positions = None
        if past_key_values is not None:  # the keys stand in a row that ends with the last token at hand
            num_keys = past_key_values.get_mask_sizes(length, 0)[0]
            behind = torch.arange(num_keys, device=hidden.device) - (seen + length - 1)
            key_positions = position_ids[:, -1:] + behind
        padding = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 else None
        places = Places(position_ids, hidden.dtype, kwargs.get("cu_seq_lens_q"), key_positions, padding)
        position = self.encode_positions(places)
        penalties: list[Tensor] = []
        for layer in cast(nn.ModuleList, self.get_submodule(self.LAYERS)):
            output = layer(
                hidden,
                attention_mask=mask,
                position=position,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
            hidden, *penalty = output if isinstance(output, tuple) else (output,)
            penalties += penalty
        return DecoderOutput(
            last_hidden_state=self.get_submodule(self.NORM)(hidden),
            past_key_values=past_key_values,
            penalty=torch.stack(penalties).sum(0) if penalties else None,
        )


class CausalLM(PreTrainedDecoder, GenerationMixin):
    """A decoder and its language head, called `HEAD` in the checkpoints; the decoder is `base_model_prefix`."""

    DECODER: ClassVar[type[Decoder]]
    HEAD: ClassVar[str] = "lm_head"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls.config_class = cls.DECODER.config_class
        cls._no_split_modules = cls.DECODER._no_split_modules
        cls._can_compile_fullgraph = cls.DECODER._can_compile_fullgraph
        super().__init_subclass__(**kwargs)

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.add_module(self.base_model_prefix, self.DECODER(config))
        self.vocab_size = config.vocab_size
        self.loss_type = "ForCausalLM"  # the library guesses it from the name of the class
        self.set_submodule(self.HEAD, self.build_head())
        self.post_init()

    def build_head(self) -> nn.Linear:
        """Make the head: (..., D) -> (..., V)."""
        return nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)

    @property
    def decoder(self) -> Decoder:
        """What stands before the head."""
        return cast(Decoder, getattr(self, self.base_model_prefix))

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another token embedding in place."""
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language head."""
        return self.get_submodule(self.HEAD)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another language head in place."""
        self.set_submodule(self.HEAD, new_embeddings)

    def to_logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        logits: Tensor = self.get_output_embeddings()(hidden)
        return logits

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Give logits (B, T, V), of the last `logits_to_keep` positions if that is not 0; and the loss of `labels`."""
        outputs = self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.to_logits(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if outputs.penalty is not None:  # shapes the gradient; the number stays the cross entropy
                penalty = outputs.penalty.mean()
                loss = loss + (penalty - penalty.detach())
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def add_part(module: nn.Module, path: str, part: nn.Module) -> None:
    """Put `part` into `module` under a dotted name; what is on the way there is made."""
    *way, name = path.split(".")
    for step in way:
        if not hasattr(module, step):
            module.add_module(step, nn.Module())
        module = module.get_submodule(step)
    module.add_module(name, part)
