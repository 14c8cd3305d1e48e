"""A `LoraSpec` in the words of PEFT, for a model that is built and for a file that is written (no torch, no PEFT)."""

from typing import Any

from xtuner.config.spec import LoraSpec


def lora_fields(spec: LoraSpec, targets: list[str] | str) -> dict[str, Any]:
    """Return what `spec` says as fields of a PEFT `LoraConfig`; `targets` are the modules it turned out to mean."""
    return {
        "r": spec.r,
        "lora_alpha": int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": targets,
        "modules_to_save": list(spec.modules_to_save) or None,
        "bias": spec.bias,
        "use_rslora": spec.rslora,
        "use_dora": spec.dora,
        "rank_pattern": dict(spec.rank_pattern),
        "alpha_pattern": dict(spec.alpha_pattern),
    }
