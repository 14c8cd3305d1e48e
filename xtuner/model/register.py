"""Tells the Auto classes of transformers about the families of our own, through their `register` doors."""

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from xtuner.config.ref import Ref
from xtuner.model import FAMILIES
from xtuner.model.families.family import Family


def find_family(model_type: str | None) -> Family | None:
    """Return our family for a model_type, or None where transformers has its own."""
    return Ref(FAMILIES[model_type]).resolve() if model_type in FAMILIES else None


def needs_remote_code(model_type: str | None) -> bool:
    """Whether neither transformers nor we know a model_type, so that only the checkpoint's own code could open it."""
    return model_type is None or model_type not in CONFIG_MAPPING


def find_tokenizer(model_type: str | None, class_name: str | None) -> type[PreTrainedTokenizerBase] | None:
    """Return our tokenizer for a model_type, or for the class that a tokenizer_config.json names."""
    family = find_family(model_type)
    if family is not None:
        return family.tokenizer
    for known in filter(None, map(find_family, FAMILIES)):
        if class_name is not None and known.tokenizer.__name__ == class_name.removesuffix("Fast"):
            return known.tokenizer
    return None


def register_families() -> None:
    """Make `Auto*.from_pretrained` choose our classes, whatever `auto_map` a checkpoint carries; may run twice."""
    for model_type in FAMILIES:
        family = find_family(model_type)
        assert family is not None
        AutoConfig.register(model_type, family.config, exist_ok=True)
        AutoModel.register(family.config, family.base, exist_ok=True)
        AutoModelForCausalLM.register(family.config, family.causal_lm, exist_ok=True)
        AutoTokenizer.register(family.config, tokenizer_class=family.tokenizer, exist_ok=True)


register_families()
