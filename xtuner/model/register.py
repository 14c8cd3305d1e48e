"""Tells the Auto classes of transformers about the families of our own, through their `register` doors."""

from collections.abc import Mapping
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from xtuner.config.ref import Ref
from xtuner.model.families.family import Family

FAMILIES: dict[str, str] = {
    "baichuan": "xtuner.model.families.baichuan:FAMILY",
    "chatglm": "xtuner.model.families.chatglm:FAMILY",
    "deepseek": "xtuner.model.families.deepseek_moe:FAMILY",
    "internlm": "xtuner.model.families.internlm:FAMILY",
    "internlm2": "xtuner.model.families.internlm2:FAMILY",
    "minicpm": "xtuner.model.families.minicpm:FAMILY",
    "qwen": "xtuner.model.families.qwen:FAMILY",
}
"""model_type of a config.json -> the family that transformers lacks."""


def find_family(model_type: str | None) -> Family | None:
    """Return our family for a model_type, or None where transformers has its own."""
    return Ref(FAMILIES[model_type]).resolve() if model_type in FAMILIES else None


def build_config(values: Mapping[str, Any]) -> PreTrainedConfig:
    """Make the config of a model of the values of a config.json, of a kind that is known."""
    config: PreTrainedConfig = CONFIG_MAPPING[values["model_type"]].from_dict(dict(values))
    return config


def is_reward_model(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model of our own which gives a number to a conversation instead of talking."""
    family = find_family(config.get("model_type"))
    names = {one.__name__ for one in family.reward} if family else set()
    return bool(names.intersection(config.get("architectures") or ()))


def needs_remote_code(model_type: str | None) -> bool:
    """Whether neither transformers nor we know a model_type, so that only the checkpoint's own code could open it."""
    return model_type is None or model_type not in CONFIG_MAPPING


def find_class(model_type: str | None) -> type[PreTrainedModel] | None:
    """Return the class of a model_type's causal language models, or None where neither transformers nor we have it."""
    family = find_family(model_type)
    if family is not None:
        return family.causal_lm[0]
    if model_type is None or model_type not in CONFIG_MAPPING:
        return None
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(CONFIG_MAPPING[model_type], None)
    return found if isinstance(found, type) else None


def find_tokenizer(model_type: str | None, class_name: str | None) -> type[PreTrainedTokenizerBase] | None:
    """Return our tokenizer for a model_type, or for the class that a tokenizer_config.json names."""
    family = find_family(model_type)
    if family is not None:
        return family.tokenizer
    if class_name is None:
        return None
    known = (one for family in filter(None, map(find_family, FAMILIES)) for one in family.tokenizers)
    return next((one for one in known if one.__name__ == class_name.removesuffix("Fast")), None)


def register_families() -> None:
    """Make `Auto*.from_pretrained` choose our classes, whatever `auto_map` a checkpoint carries; may run twice.

    Tokenizers are registered by their names alone, not beside a config: a class that is known for the config is not
    preferred to a checkpoint's own code when `trust_remote_code` is said, one that is known by name is.
    """
    for model_type in FAMILIES:
        family = find_family(model_type)
        assert family is not None
        AutoConfig.register(model_type, family.config, exist_ok=True)
        AutoModel.register(family.config, (*family.base, *family.reward), exist_ok=True)
        if family.reward:
            AutoModelForSequenceClassification.register(family.config, family.reward, exist_ok=True)
        AutoModelForCausalLM.register(family.config, family.causal_lm, exist_ok=True)
        for tokenizer in family.tokenizers:
            AutoTokenizer.register(tokenizer, tokenizer_class=tokenizer, exist_ok=True)
