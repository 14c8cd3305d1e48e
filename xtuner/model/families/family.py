"""What a family of our own consists of."""

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Family:
    """The classes that stand behind one model_type."""

    config: type[PreTrainedConfig]
    base: type[PreTrainedModel]
    """The decoder without a head."""
    causal_lm: type[PreTrainedModel]
    tokenizer: type[PreTrainedTokenizerBase]
