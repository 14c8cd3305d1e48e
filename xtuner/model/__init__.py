"""A checkpoint becomes a module: families, tokenizers, LoRA, quantisation, output heads."""

FAMILIES: dict[str, str] = {
    "internlm2": "xtuner.model.families.internlm2:FAMILY",
}
"""model_type of a config.json -> the family that transformers lacks."""

__all__ = ["FAMILIES"]
