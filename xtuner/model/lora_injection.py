"""How our LoRA layers get into a model: through PEFT's door for custom layers.

PEFT takes seconds to import, so this is imported when an adapter is asked for.
"""

from typing import Any

from peft.tuners.lora import LoraConfig
from torch import nn

from xtuner.errors import UserError
from xtuner.model.families.norm_head import NormHead
from xtuner.model.fp8_linear import Fp8Linear
from xtuner.model.lora_layer import LoraLinear


def make_layer(target: nn.Module, adapter_name: str, *args: Any, **options: Any) -> nn.Module | None:
    """Return our layer around `target`, or None where PEFT is to choose one of its own.

    PEFT calls this as the constructor of a custom layer (`LoraConfig._register_custom_module`).

    Raises:
        UserError: a layer that cannot carry an adapter.
    """
    if isinstance(target, NormHead):
        raise UserError(
            "The head of Baichuan2 norms its rows, so that an adapter on it could not be merged.",
            "Leave it out of model.lora.targets; model.lora.modules_to_save trains it as a whole.",
        )
    if type(target) in (nn.Linear, Fp8Linear):
        return LoraLinear(target, adapter_name, *args, **options)
    if hasattr(target.weight, "quant_state"):  # bitsandbytes is imported where it is used
        from xtuner.model.lora_layer_4bit import LoraLinear4bit

        return LoraLinear4bit(target, adapter_name, *args, **options)
    if hasattr(target.weight, "SCB"):
        from xtuner.model.lora_layer_8bit import LoraLinear8bit

        return LoraLinear8bit(target, adapter_name, *args, **options)
    return None


def register(config: LoraConfig) -> LoraConfig:
    """Let our layers into the injection of `config`, through PEFT's door for custom layers."""
    config._register_custom_module({nn.Linear: make_layer})  # type: ignore[dict-item]
    return config
