"""A training state (.pth) becomes what other programs open: a PEFT adapter, or a whole model; no model is built."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtuner.checkpoint.adapter import file_name, module_name, write_adapter
from xtuner.checkpoint.folder import fresh_folder, require_space, writing
from xtuner.checkpoint.hub import find_folder
from xtuner.checkpoint.shards import ShardReader, ShardWriter, read_size
from xtuner.checkpoint.state import load_state
from xtuner.config.spec import LoraSpec, RunSpec
from xtuner.conversation.builtin import find_template
from xtuner.conversation.detect import detect_template
from xtuner.conversation.jinja import to_jinja
from xtuner.conversation.template import ChatTemplate
from xtuner.errors import UserError
from xtuner.export.companion import Words, write_companions
from xtuner.log import LOGGER
from xtuner.model.load import load_tokenizer

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
LATER = ("projector.", "visual_encoder.", "v_head.", "model.vision_model.", "model.mlp1.")
"""Beginnings of names in checkpoints of other kinds of models than language models."""
REFERENCE = "ref_llm."
"""A frozen copy that 0.1.x saved beside a fully trained DPO model; nobody needs it."""


def pth_to_hf(
    spec: RunSpec,
    pth: Path,
    save_dir: Path,
    *,
    dtype: str = "float16",
    max_shard_size: str = "2GB",
    safe: bool = True,
    copy: tuple[str, str] | None = None,
    tell: Callable[[str], None] = LOGGER.info,
) -> None:
    """Write the weights in `pth`, trained as `spec` says, into `save_dir`.

    With LoRA: a PEFT folder. Else: the whole model in shards of at most `max_shard_size`, with its tokenizer, chat
    template and generation config. Weights become `dtype`; float16 is what 0.1.x wrote, and keeps more digits of an
    adapter's small numbers than bfloat16. `copy` is (name, text) of the config, to be kept beside the weights.
    Nothing is built and the base's weights are not loaded, so it takes little memory, also for QLoRA.

    Raises:
        UserError: the checkpoint is missing, cut short, or was not trained as `spec` says; a value that `dtype` cannot
            hold; the disk is full.
    """
    limit = read_size(max_shard_size)
    target = _dtype(dtype)
    if spec.model.quant is not None and spec.model.lora is None:
        raise UserError(
            "This config quantises the model without an adapter, and quantised weights are not trained.",
            "Add LoRA settings to the config and train again.",
        )
    state = read_trained(pth)
    extra = dict([copy]) if copy else {}
    if spec.model.lora is not None:
        config, tensors = to_adapter(spec.model.lora, spec.model.path, state)
        _check_base(spec.model.path, tensors)
        tensors = {name: narrow(name, tensor, target) for name, tensor in tensors.items()}
        template = find_template(spec.data.template) if spec.data.template else None
        jinja = to_jinja(template) if template else None
        tell(f"Saving to {save_dir} ({len(tensors)} weights as {dtype})...")
        write_adapter(save_dir, config, tensors, safe, chat_template=jinja, extra=extra)
        return
    write_full(spec, state, save_dir, dtype=target, max_bytes=limit, safe=safe, extra=extra, tell=tell)


def read_trained(pth: Path) -> dict[str, Tensor]:
    """Read the trained weights of a checkpoint, without the `llm.` of 0.1.x; tensors stay on the disk until touched.

    Raises:
        UserError: no checkpoint, or one of a kind that is not a language model's.
    """
    content = load_state(pth)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{pth} holds no state_dict of weights.", "Give a checkpoint such as iter_500.pth.")
    strange = sorted(name for name in state if name.startswith(LATER))
    if strange:
        raise UserError(
            f"{pth} holds {strange[0]}: checkpoints of vision and reward models cannot be converted yet.",
            "This version converts language models.",
        )
    if not state:
        raise UserError(f"{pth} holds no weights.", "Give a checkpoint such as iter_500.pth.")
    return {name.removeprefix("llm."): value for name, value in state.items() if not name.startswith(REFERENCE)}


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
    config = {
        "base_model_name_or_path": base,
        "r": lora.r,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": targets if lora.targets is None else lora.targets,
        "modules_to_save": lora.modules_to_save or None,
        "bias": lora.bias,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "rank_pattern": lora.rank_pattern,
        "alpha_pattern": lora.alpha_pattern,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    return config, tensors


def write_full(
    spec: RunSpec,
    state: Mapping[str, Tensor],
    save_dir: Path,
    *,
    dtype: torch.dtype | None,
    max_bytes: int,
    safe: bool,
    extra: Mapping[str, str] | None = None,
    template: ChatTemplate | None = None,
    tell: Callable[[str], None] = LOGGER.info,
) -> None:
    """Write a fully trained model as shards, tensor by tensor, with everything that belongs beside them.

    `dtype` None: that of the base. What the checkpoint does not hold (buffers) comes from the base.

    Raises:
        UserError: the checkpoint does not fit the base; the disk is full.
    """
    base = find_folder(spec.model.path, weights=True)
    refuse_folder(save_dir, base)
    reader = ShardReader(base)
    unknown = sorted(name for name in state if name not in reader)
    if unknown:
        raise UserError(
            f"The checkpoint does not fit {base}: it holds {len(unknown)} weights that are not there, "
            f"such as {', '.join(unknown[:3])}.",
            "Give the config that this checkpoint was trained with.",
        )
    words = words_of(spec, base, template)
    require_space(save_dir, sum(value.numel() * (dtype or value.dtype).itemsize for value in state.values()))
    tell(f"Saving to {save_dir} ...")
    with fresh_folder(save_dir) as aside:
        with ShardWriter(aside, max_bytes, safe) as writer:
            for name in reader.names():
                shape = reader.shape(name)
                if name in state and tuple(state[name].shape) != shape:
                    raise UserError(
                        f"The checkpoint does not fit {base}: {name} is {tuple(state[name].shape)}, and {shape} there.",
                        "Give the config that this checkpoint was trained with.",
                    )
                tensor = reader.get(name)
                kind = dtype or tensor.dtype
                if name in state:
                    tensor = state[name]
                writer.add(name, narrow(name, tensor, kind) if tensor.is_floating_point() else tensor)
        write_companions(base, aside, words, dtype=dtype, tell=tell)
        with writing(save_dir):
            for name, text in (extra or {}).items():
                (aside / name).write_text(text, "utf-8")


def words_of(spec: RunSpec, base: Path, template: ChatTemplate | None = None) -> Words:
    """Return the tokenizer and the template of a run: the given one, that of its data, or that of its base."""
    folder = find_folder(spec.model.tokenizer, weights=False) if spec.model.tokenizer else base
    tokenizer = load_tokenizer(
        str(folder), options=spec.model.tokenizer_options, trust_remote_code=spec.model.trust_remote_code
    )
    name = spec.data.template or detect_template(base)
    template = template or (find_template(name) if name else None)
    tokens = {key: value for key, value in spec.model.tokenizer_options.items() if key.endswith("_token")}
    return Words(tokenizer, folder, template, tokens)


def narrow(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a weight, and refuse to lose it.

    Raises:
        UserError: values that are no numbers, or too large for `dtype`.
    """
    cast = tensor.to(dtype)
    if bool(torch.isfinite(cast).all()):
        return cast
    if bool(torch.isfinite(tensor).all()):
        raise UserError(
            f"{name} has values that {str(dtype).removeprefix('torch.')} cannot hold.",
            "Add --dtype bfloat16 or --fp32.",
        )
    raise UserError(f"{name} has values that are no numbers: the training diverged.", "Use an earlier checkpoint.")


def refuse_folder(save_dir: Path, *sources: Path) -> None:
    """Refuse to write a model over one of its sources, or next to an adapter that loaders would put on top of it.

    Raises:
        UserError: such a folder.
    """
    if any(save_dir.exists() and save_dir.resolve() == source.resolve() for source in sources):
        raise UserError(f"{save_dir} is the folder that is read from.", "Give another folder to save into.")
    if (save_dir / "adapter_config.json").exists():
        raise UserError(
            f"{save_dir} holds an adapter, which loaders would put on top of the model.", "Give another folder."
        )


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
