"""A checkpoint becomes a tokenizer and a module, ready to train or to answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from xtuner.checkpoint.adapter import read_adapter_config
from xtuner.checkpoint.state import load_state
from xtuner.config.spec import ModelSpec
from xtuner.errors import UserError
from xtuner.log import LOGGER
from xtuner.model.attention import PACKED, check_packing
from xtuner.model.checks import check_folder, explain, hub_options, not_found, read_json
from xtuner.model.head import check_head
from xtuner.model.register import find_tokenizer, needs_remote_code
from xtuner.model.trainable import load_trainable

GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(
    path: str, *, options: Mapping[str, Any] | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub id; `options` go to its class.

    Raises:
        UserError: no such model, no tokenizer in it, or its files are damaged.
    """
    check_folder(path, ("tokenizer_config.json", "tokenizer.json", "config.json"))
    name = read_json(path, "tokenizer_config.json").get("tokenizer_class")
    model_type = read_json(path, "config.json").get("model_type")
    own_class = None if name in GENERIC_TOKENIZERS else find_tokenizer(model_type, name)
    given = {**hub_options(path), **(options or {})}
    with explain(path, "tokenizer"):
        if own_class is not None:
            return own_class.from_pretrained(path, **given)
        trust = trust_remote_code and needs_remote_code(model_type)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust, **given)
        if not tokenizer.encode("a", add_special_tokens=False):  # the library makes an empty one of no files
            raise UserError(f"{path} holds no files of a tokenizer.", "Copy them from the original model.")
        return tokenizer


def load_model(spec: ModelSpec, *, device: str, dtype: torch.dtype, train: bool) -> torch.nn.Module:
    """Load what `spec` describes onto `device`.

    Weights of the checkpoint are held in `dtype` (4 or 8 bits with `spec.quant`); adapter weights in fp32 when
    training. For training the model comes in training mode with packed attention and, if
    `spec.recompute`, with activations recomputed in the backward pass; else in evaluation mode.
    With an adapter it is a `PeftModel`. Random numbers are drawn for a new adapter only, from torch's generator.

    Raises:
        UserError: the checkpoint is missing, incomplete, damaged or of an unknown kind; no memory; the parts of
            `spec` do not fit together; an adapter or weights that do not fit the model.
    """
    check_spec(spec, train=train)
    state = load_state(Path(spec.weights)) if spec.weights is not None else None
    model = load_base(spec, device=device, dtype=dtype, train=train)
    if train:
        prepare_training(model, spec)
    result: torch.nn.Module = model
    if spec.lora is not None or spec.adapter is not None:
        from xtuner.model.lora import add_lora, load_adapter, open_adapter

        if spec.lora is None:
            assert spec.adapter is not None
            result = open_adapter(model, spec.adapter)
        else:
            result = add_lora(model, spec.lora)
            if spec.adapter is not None:
                load_adapter(result, spec.adapter)
    if state is not None:
        load_trainable(result, state.get("state_dict", state))
    return result.train(train)


def check_spec(spec: ModelSpec, *, train: bool) -> None:
    """Refuse combinations that cannot work, before anything is read.

    Raises:
        UserError: training quantised weights without an adapter; an adapter without LoRA settings; no such adapter.
    """
    if train and spec.quant is not None and spec.lora is None:
        raise UserError(
            "Quantised weights cannot be trained themselves.", "Add an adapter (model.lora), or leave model.quant out."
        )
    if spec.adapter is not None and spec.lora is None and (train or spec.adapter.rstrip(":").endswith(".pth")):
        raise UserError(
            f"The adapter {spec.adapter} is given without LoRA settings.",
            "Add model.lora with the settings it was made with.",
        )
    if spec.adapter is not None and not spec.adapter.rstrip(":").endswith(".pth"):
        read_adapter_config(spec.adapter)


def load_base(spec: ModelSpec, *, device: str, dtype: torch.dtype, train: bool) -> PreTrainedModel:
    """Load the checkpoint alone, frozen weights quantised if asked."""
    check_folder(spec.path, ("config.json",))
    config = read_json(spec.path, "config.json")
    if not config:
        raise not_found(spec.path)
    trust = spec.trust_remote_code and needs_remote_code(config.get("model_type"))
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "trust_remote_code": trust}
    options["ignore_mismatched_sizes"] = True  # they are refused below, in words of ours
    options.update(hub_options(spec.path), adapter_kwargs=hub_options(spec.path))
    if spec.attention != "auto":
        options["attn_implementation"] = spec.attention
    elif train:
        options["attn_implementation"] = PACKED
    if spec.quant is not None:
        from xtuner.model.quant import quantization_config

        options["quantization_config"] = quantization_config(spec.quant, dtype)
    if spec.quant is not None or device != "cpu":
        options["device_map"] = {"": device}
    with explain(spec.path, "model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(spec.path, **options)
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"The checkpoint {spec.path} lacks {len(missing)} weights, for example {missing[0]}.",
            "Download or copy the model again; it is incomplete.",
        )
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        raise UserError(
            f"The checkpoint {spec.path} does not fit its config.json: {key} has the shape {list(stored)}, "
            f"config.json asks for {list(wanted)}.",
            "The two come from different models; download or copy the model again.",
        )
    if info["unexpected_keys"]:
        names = sorted(info["unexpected_keys"])
        LOGGER.info("%s has %d weights that the model does not use, for example %s", spec.path, len(names), names[0])
    if spec.quant is not None:
        from xtuner.model.quant import freeze_quantised

        freeze_quantised(model, train=train)
    assert isinstance(model, PreTrainedModel)
    return model


def prepare_training(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Prove that packed rows do not mix and that the loss sees the model's own logits; switch recomputation on."""
    check_packing(model)
    check_head(model)
    if spec.recompute:
        # transformers renamed the method in 5.23
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
