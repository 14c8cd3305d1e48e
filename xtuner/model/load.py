"""A checkpoint becomes a tokenizer and a module, ready to train or to answer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from xtuner.checkpoint.hub import find_folder
from xtuner.checkpoint.model_folder import check_folder, read_adapter_config
from xtuner.checkpoint.path import is_state
from xtuner.checkpoint.state import load_weights
from xtuner.config.spec import ModelSpec
from xtuner.conversation.encode import reads_roles_as_text
from xtuner.errors import UserError
from xtuner.log import LOGGER
from xtuner.model.attention import attention_of, check_attention, check_packing
from xtuner.model.checks import explain, generation_ends, hub_options, not_found, read_json
from xtuner.model.fp8_linear import keep_transposes, to_fp8
from xtuner.model.head import check_head
from xtuner.model.host_embedding import keep_on_host
from xtuner.model.layer_groups import group_layers
from xtuner.model.position import position_changes
from xtuner.model.recompute import compile_layers, set_recompute
from xtuner.model.register import build_config, find_class, find_tokenizer, is_reward_model, needs_remote_code
from xtuner.model.shared_input import share_inputs
from xtuner.model.trainable import load_trainable
from xtuner.model.vocabulary import grow_vocabulary, with_vocabulary

GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(
    path: str, *, options: Mapping[str, Any] | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub id for conversations; `options` go to its class.

    ChatGLM3 was trained on one token for each word for a role, and as in the configs of 0.1.x that is how its texts are
    read here, unless `encode_special_tokens` says otherwise.

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
            tokenizer = own_class.from_pretrained(path, **given)
        else:
            trust = trust_remote_code and needs_remote_code(model_type)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust, **given)
        if not tokenizer.encode("a", add_special_tokens=False):  # the library makes an empty one of no files
            raise UserError(f"{path} holds no files of a tokenizer.", "Copy them from the original model.")
        if "encode_special_tokens" not in given and reads_roles_as_text(tokenizer):
            tokenizer.split_special_tokens = False
        return tokenizer


def load_model(
    spec: ModelSpec,
    *,
    device: str,
    dtype: torch.dtype,
    train: bool,
    packed: bool = True,
    make_fp8: Callable[[PreTrainedModel], None] = to_fp8,
) -> torch.nn.Module:
    """Load what `spec` describes onto `device`.

    Weights of the checkpoint are held in `dtype` (4 or 8 bits with `spec.quant`); adapter weights in fp32 when
    training. For training the model comes in training mode with packed attention and, if
    `spec.recompute`, with activations recomputed in the backward pass; else in evaluation mode. `packed`: it will
    be trained on rows of several samples, which not every model keeps apart. `make_fp8` is called where `spec.quant`
    asks for FP8: `to_fp8`, or one that also measures what it costs.
    With an adapter it is a `PeftModel`. Random numbers are drawn for a new adapter only, from torch's generator.

    Raises:
        UserError: the checkpoint is missing, incomplete, damaged or of an unknown kind; no memory; the parts of
            `spec` do not fit together; an adapter or weights that do not fit the model.
    """
    check_spec(spec, train=train)
    weights = load_weights(Path(spec.weights)) if spec.weights is not None else None
    model = load_base(spec, device=device, dtype=dtype, train=train)
    lora = spec.lora
    if spec.resize_vocab and grow_vocabulary(model, num_tokens(spec)) and lora is not None:
        lora = with_vocabulary(lora, model)
    if spec.quant is not None and spec.quant.head:
        from xtuner.model.head_4bit import quantise_head

        quantise_head(model, spec.quant, lora)
    if train:
        prepare_training(model, spec, packed=packed)
    if spec.quant is not None and spec.quant.type == "fp8":
        make_fp8(model)  # after the proofs: its rounding would hide what they look for
    result: torch.nn.Module = model
    if spec.lora is not None or spec.adapter is not None:
        from xtuner.model.lora import add_lora, load_adapter, open_adapter

        if lora is None:
            assert spec.adapter is not None
            result = open_adapter(model, spec.adapter)
        else:
            result = add_lora(model, lora)
            if spec.adapter is not None:
                load_adapter(result, spec.adapter)
            if train:
                share_inputs(result, model, dtype)
    if spec.quant is not None and spec.quant.bits == 4:
        from xtuner.model.quant import check_rows

        check_rows(result)
    if spec.quant is not None and spec.quant.resident and train:
        if spec.quant.bits == 4:
            from xtuner.model.lora_layer_4bit import keep_in_full

            keep_in_full(result)
        else:
            keep_transposes(result)
    if spec.host_embedding:
        keep_on_host(result)
    if weights is not None:
        load_trainable(result, weights)
    return result.train(train)


def num_tokens(spec: ModelSpec) -> int:
    """Return how many tokens the tokenizer of `spec` has, added ones included."""
    path = spec.tokenizer or spec.path
    return len(load_tokenizer(path, options=spec.tokenizer_options, trust_remote_code=spec.trust_remote_code))


def check_spec(spec: ModelSpec, *, train: bool) -> None:
    """Refuse combinations that cannot work, before anything is read.

    Raises:
        UserError: training quantised weights without an adapter; an adapter without LoRA settings; no such adapter.
    """
    if train and spec.quant is not None and spec.lora is None:
        raise UserError(
            "Quantised weights cannot be trained themselves.", "Add an adapter (model.lora), or leave model.quant out."
        )
    if spec.adapter is not None and spec.lora is None and (train or is_state(spec.adapter)):
        raise UserError(
            f"The adapter {spec.adapter} is given without LoRA settings.",
            "Add model.lora with the settings it was made with.",
        )
    if spec.adapter is not None and not is_state(spec.adapter):
        read_adapter_config(spec.adapter)


def load_base(spec: ModelSpec, *, device: str, dtype: torch.dtype, train: bool) -> PreTrainedModel:
    """Load the checkpoint alone, frozen weights quantised if asked."""
    check_folder(spec.path, ("config.json",))
    config = read_json(spec.path, "config.json")
    if not config:
        raise not_found(spec.path)
    if is_reward_model(config):
        raise UserError(
            f"{spec.path} is a reward model: it gives a conversation a number and says nothing itself.",
            "Use a base or chat model; a judge is opened with AutoModel and asked by model.get_score(tokenizer, chat).",
        )
    trust = spec.trust_remote_code and needs_remote_code(config.get("model_type"))
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "trust_remote_code": trust}
    options["ignore_mismatched_sizes"] = True  # they are refused below, in words of ours
    options.update(hub_options(spec.path), adapter_kwargs=hub_options(spec.path))
    options["generation_config"] = generation_ends(spec.path)
    if changes := position_changes(spec, config):
        options["config"] = build_config({**config, **changes})
    attention = attention_of(find_class(config.get("model_type")), spec.attention, train=train)
    if attention is not None:
        options["attn_implementation"] = attention
    fp8 = spec.quant is not None and spec.quant.type == "fp8"
    if spec.quant is not None and not fp8:
        from xtuner.model.quant import quantization_config

        options["quantization_config"] = quantization_config(spec.quant, dtype)
    if spec.quant is not None or device != "cpu":
        options["device_map"] = {"": device}
    if not Path(spec.path).is_dir():
        find_folder(spec.path, weights=True)  # fetched here, where its progress is shown
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
    if spec.quant is not None and not fp8:
        from xtuner.model.quant import freeze_quantised

        freeze_quantised(model, train=train)
    assert isinstance(model, PreTrainedModel)
    return model


def prepare_training(model: PreTrainedModel, spec: ModelSpec, *, packed: bool) -> None:
    """Prove that packed rows do not mix and that the loss sees the model's own logits; switch recomputation on."""
    check_attention(model)
    if packed:
        check_packing(model)
    check_head(model)
    set_recompute(model, spec.recompute, compiled=spec.compile is True)
    if spec.compile is True:
        compile_layers(model)
    if spec.recompute == "offload_groups":
        group_layers(getattr(model, model.base_model_prefix))
