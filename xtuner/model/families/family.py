"""What a family of our own consists of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

Classes = tuple[type[PreTrainedModel], ...]
"""The first is taken unless config.json names another one under `architectures`."""


@dataclass(frozen=True)
class Family:
    """The classes that stand behind one model_type."""

    config: type[PreTrainedConfig]
    base: Classes
    """Decoders without a language head."""
    causal_lm: Classes
    tokenizer: type[PreTrainedTokenizerBase] | None = None
    """None: transformers opens the tokenizer files as they are."""
    tokenizer_aliases: tuple[type[PreTrainedTokenizerBase], ...] = ()
    """Subclasses under further names that tokenizer_config.json may give it."""
    reward: Classes = ()
    """Decoders with a head that gives one number to a conversation."""

    @property
    def tokenizers(self) -> tuple[type[PreTrainedTokenizerBase], ...]:
        """The tokenizer under all its names."""
        return () if self.tokenizer is None else (self.tokenizer, *self.tokenizer_aliases)


RUNNING = ("attn_implementation", "gradient_checkpointing")
"""Keys that some published files hold although they are about a program that runs the model: InternLM2.5 would answer
with the slowest attention for them, Baichuan-13B recompute activations whatever is asked for."""


class FamilyConfig(PreTrainedConfig):
    """A config.json that is read and written under the original keys."""

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    UNKNOWN: ClassVar[Mapping[str, str]] = {}
    """Keys that ask for what the family does not do unless their value is empty, and what to say."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read what a file says; how to run the model is said in `kwargs` alone."""
        values = {key: value for key, value in config_dict.items() if key not in RUNNING or not value}
        return super().from_dict(values, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse what the family does not know. Make sure that `architectures` is a list: the Auto classes choose
        among several classes by it."""
        for key, words in self.UNKNOWN.items():
            if kwargs.get(key) or getattr(self, key, None):
                raise ValueError(f"{key}: {words}")
        activation = getattr(self, "hidden_act", None)
        if activation is not None and activation not in ACT2FN:
            raise ValueError(f"hidden_act: there is no activation called {activation}")
        super().__post_init__(**kwargs)
        self.architectures = list(self.architectures or [])

    def to_dict(self) -> dict[str, Any]:
        """Give the keys as original readers expect them, without `auto_map`: the files it names are not written."""
        values = super().to_dict()
        values.pop("auto_map", None)
        if "dtype" in values:
            values["torch_dtype"] = values.pop("dtype")
        return values
