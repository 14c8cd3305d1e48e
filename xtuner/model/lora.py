"""LoRA: PEFT owns configuration, injection and files; the layers are ours (`lora_layer`).

PEFT takes seconds to import, so it is imported when an adapter is asked for.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtuner.checkpoint.adapter import PREFIX, module_name, read_adapter
from xtuner.checkpoint.path import is_state
from xtuner.checkpoint.state import load_weights
from xtuner.config.lora_fields import lora_fields
from xtuner.config.spec import LoraSpec
from xtuner.errors import UserError, did_you_mean
from xtuner.log import LOGGER
from xtuner.model.trainable import ADAPTER, load_trainable
from xtuner.model.vocabulary import grow_vocabulary

if TYPE_CHECKING:
    from peft import PeftModel

NEVER_BY_DEFAULT = ("lm_head", "output_layer")
"""Heads that default targets leave out, as 0.1.x did. InternLM2 calls its head `output`: that one is adapted."""


EXPERT_LAYERS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "router"}
"""Names that the linear layers of experts had before transformers 5 made one weight of all experts of a layer. PEFT
takes some of them for those fused weights even where a shared expert or a dense layer bears the name. A router is a
linear layer that gives more than a product (Phi-3.5-MoE, Llama 4)."""

EVERY_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the head."""


def add_lora(model: PreTrainedModel, spec: LoraSpec) -> "PeftModel":
    """Inject a fresh adapter; the base is frozen, what is trained is fp32.

    The initial weights come from torch's generator (A uniform, B zero, so the model is unchanged at first).

    Raises:
        UserError: a target or module to save that the model does not have, a module to save that is quantised, a
            pattern that fits no layer, or DoRA over 8 bits on a CPU.
    """
    from peft import LoraConfig, get_peft_model

    from xtuner.model.lora_injection import register

    targets, usual = spec.targets, default_targets(model)
    if targets is None:
        targets = [name for name in usual if name not in spec.modules_to_save]
    if not targets:
        raise UserError(
            "The model has no linear layers of the usual kind that an adapter could be put on.",
            "Name its layers: model.lora.targets=[c_attn,c_proj], for example.",
        )
    _check_names(model, targets, spec.modules_to_save)
    _check_trainable(model, spec.modules_to_save)
    if spec.dora and any(value.dtype == torch.int8 and not value.is_cuda for value in model.parameters()):
        raise UserError(
            "On a CPU, PEFT loses the scales of 8-bit weights when DoRA reads them.",
            "Use model.quant.bits=4, or model.lora.dora=false",
        )
    config = LoraConfig(task_type="CAUSAL_LM", **lora_fields(spec, targets))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about merging into tied heads; export does that itself
        wrapped = get_peft_model(model, register(config))
    if config.target_parameters:
        raise UserError(
            f"In this model PEFT takes {', '.join(sorted(EXPERT_LAYERS & set(targets)) or targets)} for the experts, "
            "which are one weight per layer that no adapter is put on here.",
            f"Leave model.lora.targets out, or set it to some of: {', '.join(usual)}",
        )
    _check_patterns(wrapped, spec)
    if num_fused := fused_experts(model):
        LOGGER.info(
            "The adapter leaves the experts as they are: they are fused weights (%s parameters), no linear layers. "
            "It is on %s.",
            f"{num_fused:,}",
            targets if isinstance(targets, str) else ", ".join(targets),
        )
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def default_targets(model: nn.Module) -> list[str]:
    """Return the last part of the name of every linear layer, quantised ones included, sorted.

    Beside fused experts, layers that are named as theirs were are left out (`EXPERT_LAYERS`).
    """
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if fused_experts(model):
        names -= EXPERT_LAYERS
    return sorted(names.difference(NEVER_BY_DEFAULT))


def fused_experts(model: nn.Module) -> int:
    """Return how many numbers lie in weights that hold all experts of a layer, (E, out, in) each."""
    return sum(value.numel() for name, value in model.named_parameters() if ".experts." in name and value.dim() == 3)


def load_adapter(model: nn.Module, path: str) -> None:
    """Put saved weights into the adapter of `model`: from a PEFT folder or a `.pth` file.

    Raises:
        UserError: no such adapter, damaged files, or one that does not fit; names the modules.
    """
    if is_state(path):
        load_trainable(model, load_weights(Path(path)))
        return
    made, tensors = read_adapter(path)
    load_trainable(model, tensors)
    here = adapter_config(model)
    for setting in ("lora_alpha", "use_rslora"):  # what shapes do not show
        if setting in made and made[setting] != here[setting]:
            raise UserError(
                f"The adapter {path} was made with {setting} {made[setting]}, and this run has {here[setting]}.",
                "Give the adapter's settings in model.lora.",
            )


def open_adapter(model: PreTrainedModel, folder: str) -> "PeftModel":
    """Wrap the model with a PEFT folder as it is, settings included, to answer with.

    Raises:
        UserError: no such adapter, damaged files, or it does not fit the model; names the modules.
    """
    from peft import LoraConfig, PeftModel

    config, tensors = read_adapter(folder)
    unknown = sorted(config.keys() - {entry.name for entry in fields(LoraConfig)} - {"peft_version"})
    strange = [key for key in unknown if config[key] not in (None, False, "", [], {})]
    if strange:
        raise UserError(
            f"The adapter {folder} uses {', '.join(strange)}, which this version of PEFT does not know.",
            "Upgrade PEFT, or use another adapter.",
        )
    _fit_vocabulary(model, tensors)
    targets = config.get("target_modules")
    _check_names(model, targets if targets is not None else [], config.get("modules_to_save") or [])
    try:
        with warnings.catch_warnings():  # about keys that older versions of PEFT wrote, which say nothing (see above)
            warnings.filterwarnings("ignore", "Unexpected keyword arguments")
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # merging parts the two
            opened = PeftModel.from_pretrained(model, folder, is_trainable=False)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        first = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
        raise UserError(
            f"The adapter {folder} does not fit the model: {first.rstrip('.')[:300]}.",
            "Use the base model that it was trained on.",
        ) from error
    _check_modules(opened, {module_name(name) for name in tensors if ".lora_" in name}, folder)
    return opened


def _fit_vocabulary(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Give the model the rows of an adapter that was trained with more tokens."""
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    stored = tensors.get(f"{PREFIX}{embedding}.weight")
    if stored is not None:
        grow_vocabulary(model, stored.shape[0])


def _check_modules(opened: "PeftModel", stored: set[str], folder: str) -> None:
    """Refuse an adapter for more or fewer layers than the model has, which PEFT opens without an error."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {
        name.removeprefix(PREFIX) for name, module in opened.named_modules() if isinstance(module, BaseTunerLayer)
    }
    for names, what in ((stored - adapted, "the model has no"), (adapted - stored, "it has nothing for")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"The adapter {folder} does not fit the model: {what} {min(names)}{more}.",
                "Use the base model that it was trained on.",
            )


def adapter_config(model: nn.Module) -> dict[str, Any]:
    """Return the fields of adapter_config.json: plain types, targets sorted, marked for inference."""
    config: dict[str, Any] = model.peft_config[ADAPTER].to_dict()  # type: ignore[index,union-attr]
    config["inference_mode"] = True
    return {key: _plain(value) for key, value in config.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return str.__str__(value)
    return str(value) if isinstance(value, torch.dtype) else value


def _check_names(model: nn.Module, targets: list[str] | str, saved: list[str]) -> None:
    """Refuse names that match nothing: PEFT leaves them out without a word as long as one matches."""
    names = [name for name, _ in model.named_modules() if name]
    wanted = list(saved) if isinstance(targets, str) else [*targets, *saved]
    if isinstance(targets, str) and targets != EVERY_LINEAR:
        try:
            matched = any(re.fullmatch(targets, name) for name in names)
        except re.error as error:
            raise UserError(f"{targets} is not a regular expression: {error}.", "Mend it, or give a list.") from error
        if not matched:
            raise UserError(
                f"The regular expression {targets} matches no module of the model.",
                "It must match whole names, for example .*layers.*wqkv",
            )
    unknown = [word for word in wanted if not any(name == word or name.endswith(f".{word}") for name in names)]
    if unknown:
        known = default_targets(model)
        hint = did_you_mean(unknown[0], known) or f"Its linear layers are {', '.join(known)}."
        raise UserError(f"The model has no module called {', '.join(unknown)} for an adapter.", hint)


def _check_trainable(model: nn.Module, saved: list[str]) -> None:
    """Refuse to train whole what is quantised, of which PEFT says something about floating points."""
    for name, module in model.named_modules():
        word = next((word for word in saved if name == word or name.endswith(f".{word}")), None)
        if word is not None and not all(value.is_floating_point() for value in module.parameters()):
            raise UserError(
                f"{word}, which model.lora.modules_to_save trains whole, is stored in 4 or 8 bits.",
                "Leave it out of model.lora.modules_to_save, or leave model.quant out.",
            )


def _check_patterns(wrapped: nn.Module, spec: LoraSpec) -> None:
    """Refuse ranks and alphas for layers that carry no adapter, which PEFT passes over. It looks for them like this."""
    adapted = [name for name, module in wrapped.named_modules() if hasattr(module, "lora_A")]
    for setting, patterns in (("rank_pattern", spec.rank_pattern), ("alpha_pattern", spec.alpha_pattern)):
        for pattern in patterns:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in adapted}))
                raise UserError(
                    f"model.lora.{setting} names {pattern}, and no layer with an adapter is called so.",
                    f"The layers with an adapter are {known}.",
                )
