"""A training state (.pth) becomes what other programs open: a PEFT adapter, or a whole model; no model is built."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtuner.checkpoint.adapter import file_name, module_name, write_adapter
from xtuner.checkpoint.dtype import DTYPES
from xtuner.checkpoint.hub import find_folder
from xtuner.checkpoint.path import strip_colon
from xtuner.checkpoint.run_record import is_run_folder, read_run
from xtuner.checkpoint.shards import ShardReader, read_size
from xtuner.config.later import check_runnable
from xtuner.config.lora_fields import lora_fields
from xtuner.config.spec import LoraSpec, RunSpec
from xtuner.conversation.builtin import to_template
from xtuner.conversation.jinja import to_jinja
from xtuner.conversation.template import ChatTemplate
from xtuner.errors import UserError
from xtuner.export.target import refuse_model_folder
from xtuner.export.trained import narrow, read_trained
from xtuner.log import LOGGER
from xtuner.model.position import position_changes


def pth_to_hf(
    spec: RunSpec,
    pth: Path,
    save_dir: Path,
    *,
    dtype: str = "float16",
    max_shard_size: str = "2GB",
    safe: bool = True,
    copy: tuple[str, str] | None = None,
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = LOGGER.info,
) -> None:
    """Write the weights in `pth`, trained as `spec` says, into `save_dir`.

    With LoRA: a PEFT folder. Else: the whole model in shards of at most `max_shard_size`, with its tokenizer, chat
    template and generation config. Weights become `dtype`; float16 is what 0.1.x wrote, and keeps more digits of an
    adapter's small numbers than bfloat16. `copy` is (name, text) of the config, to be kept beside the weights.
    Nothing is built and the base's weights are not loaded, so it takes little memory, also for QLoRA.

    Raises:
        UserError: the checkpoint is missing, cut short, or was not trained as `spec` says; a value that `dtype` cannot
            hold; `save_dir` holds a model that the adapter would be put on; the disk is full.
    """
    check_runnable(spec, "model.vision")
    limit = read_size(max_shard_size)
    target = _dtype(dtype)
    if spec.model.quant is not None and spec.model.lora is None:
        raise UserError(
            "This config quantises the model without an adapter, and quantised weights are not trained.",
            "Add LoRA settings to the config and train again.",
        )
    if spec.model.lora is not None:
        refuse_model_folder(save_dir)
    state = read_trained(pth)
    extra = dict([copy]) if copy else {}
    template = _trained_template(spec, pth)
    if spec.model.lora is not None:
        config, tensors = to_adapter(spec.model.lora, spec.model.path, state)
        _check_base(spec.model.path, tensors)
        tensors = {name: narrow(name, tensor, target) for name, tensor in tensors.items()}
        jinja = to_jinja(template) if template else None
        tell(f"Saving to {save_dir} ({len(tensors)} weights as {dtype})...")
        changes, add = _beside_adapter(spec)
        write_adapter(save_dir, config, tensors, safe, chat_template=jinja, extra=extra, base_changes=changes, add=add)
        return
    from xtuner.export.full import write_full  # transformers takes seconds, which adapters need not wait for

    write_full(
        spec,
        state,
        save_dir,
        dtype=target,
        max_bytes=limit,
        safe=safe,
        extra=extra,
        template=template,
        trust_remote_code=trust_remote_code,
        tell=tell,
    )


def _beside_adapter(spec: RunSpec) -> tuple[dict[str, Any], Callable[[Path], object] | None]:
    """What an adapter needs of the run beside its weights: stretched positions, a tokenizer with more tokens."""
    model = spec.model
    changes: dict[str, Any] = {}
    if model.max_position_embeddings is not None:
        base = find_folder(model.path, weights=False)
        changes = position_changes(model, json.loads((base / "config.json").read_text("utf-8")))
    if not model.resize_vocab:
        return changes, None
    from xtuner.model.load import load_tokenizer  # transformers takes seconds, which other adapters need not wait for

    tokenizer = load_tokenizer(model.tokenizer or model.path, options=model.tokenizer_options)
    return changes, tokenizer.save_pretrained


def to_adapter(lora: LoraSpec, base: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return adapter_config.json and the tensors of a PEFT folder for a training state.

    Raises:
        UserError: the state is not that of an adapter with these settings.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        known = file_name(name)
        if known is None:
            raise UserError(
                f"The config trains an adapter, and the checkpoint holds {name}, which is none of it.",
                "Give the config that this checkpoint was trained with.",
            )
        tensors[known] = value
    targets = sorted({module_name(name).rpartition(".")[2] for name in tensors if ".lora_" in name})
    if not targets:
        raise UserError("The checkpoint holds no adapter.", "Give the config that this checkpoint was trained with.")
    ranks = {value.shape[0] for name, value in tensors.items() if name.endswith("lora_A.weight")}
    if not lora.rank_pattern and ranks - {lora.r}:
        raise UserError(
            f"The checkpoint's adapter has rank {min(ranks - {lora.r})}, and the config says {lora.r}.",
            "Give the config that this checkpoint was trained with.",
        )
    whole = {module_name(str(file_name(name))) for name in state if ".modules_to_save." in name}
    saved = [name for name in sorted(whole) if not any(name.endswith(known) for known in lora.modules_to_save)]
    lora = lora.model_copy(update={"modules_to_save": [*lora.modules_to_save, *saved]})
    config = {
        "base_model_name_or_path": base,
        **lora_fields(lora, targets if lora.targets is None else lora.targets),
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    return config, tensors


def _trained_template(spec: RunSpec, pth: Path) -> ChatTemplate | None:
    """The template that `spec` names; of a template in a program file the fields that the run recorded are taken,
    since the spec may be somebody else's and a conversion runs no code of it."""
    name = spec.data.template
    if name is None:
        return None
    if not isinstance(name, str) or ":" not in name:
        return to_template(name if isinstance(name, str) else name.fields())
    folder = strip_colon(pth).absolute().parent
    recorded = read_run(folder).template if is_run_folder(folder) else None
    if recorded is None:
        raise UserError(
            f"The chat template {name} of this checkpoint is not recorded beside it.",
            "Give the checkpoint inside the work dir of its training.",
        )
    return to_template(recorded)


def _check_base(path: str, tensors: Mapping[str, Tensor]) -> None:
    """Where the base is at hand, refuse an adapter for modules it does not have; its weights are not read."""
    folder = Path(path)
    if not folder.is_dir():
        return
    try:
        reader = ShardReader(folder)
    except UserError:
        return  # the weights are elsewhere, and are not needed
    modules = {name.rpartition(".")[0] for name in reader.names()}
    absent = sorted({module_name(name) for name in tensors} - modules - {"lm_head"})
    if absent:
        raise UserError(
            f"The checkpoint does not fit {folder}: it adapts {len(absent)} modules that are not there, "
            f"such as {', '.join(absent[:3])}.",
            "Give the config that this checkpoint was trained with.",
        )


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"There is no dtype {name}.", f"Known: {', '.join(DTYPES)}.", exit_code=2)
    return DTYPES[name]
