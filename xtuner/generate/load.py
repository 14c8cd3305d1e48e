"""From a path that people type (a model, a base with an adapter, a run folder) to a model one can talk to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from xtuner.checkpoint.run_record import is_run_folder, nothing_saved, read_run
from xtuner.checkpoint.state import find_last
from xtuner.config.spec import ModelSpec, QuantSpec, RunSpec
from xtuner.conversation.builtin import PLAIN, TEMPLATES, find_template, to_template
from xtuner.conversation.detect import detect_template
from xtuner.conversation.template import ChatTemplate
from xtuner.errors import UserError
from xtuner.generate.local import LocalChat
from xtuner.log import LOGGER
from xtuner.model.checks import check_folder, explain, hub_options, read_json
from xtuner.model.load import load_model, load_tokenizer
from xtuner.model.register import needs_remote_code

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
DTYPES |= {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Source:
    """What stands behind a path: how to load the model, and the template (name or fields) if a run recorded it."""

    model: ModelSpec
    template: str | dict[str, Any] | None = None
    is_run: bool = False


def load_chat(
    path: Path | str,
    *,
    adapter: Path | str | None = None,
    bits: Literal[4, 8] | None = None,
    template: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    offload_folder: Path | str | None = None,
    show_special: bool = False,
    tell: Callable[[str], None] = LOGGER.info,
) -> LocalChat:
    """Load the model at `path` (a model folder or hub id, or the folder of a run) for talking.

    `bits` stores the weights in 4 or 8 bits. `dtype` is `auto` (fp32 on a CPU; on a GPU bf16, or fp16 where bf16 is
    missing), fp16, bf16 or fp32. `offload_folder` lets a model that is larger than the memory spread over GPUs, CPU
    memory and that folder. `template` is a name; without it: the run's, what the checkpoint is recognised by, the
    chat template of its tokenizer.

    Raises:
        UserError: no such model, adapter or template; parts that do not fit together; no memory; no template known.
    """
    named = find_template(template) if template else None
    source = find_source(path, adapter)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    spec = source.model.model_copy(update={"quant": QuantSpec(bits=bits) if bits else None, "recompute": False})
    check_folder(spec.path, ("config.json",))
    tokenizer = load_tokenizer(spec.tokenizer or spec.path, options=spec.tokenizer_options)
    chosen = named or _known_template(source, tokenizer)
    tell(f"Load LLM from {spec.path}")
    if spec.adapter or spec.weights:
        tell(f"Load adapter from {spec.adapter}" if spec.adapter else f"Load weights from {spec.weights}")
    model = (
        load_model(spec, device=device, dtype=pick_dtype(dtype, device), train=False)
        if offload_folder is None
        else _load_offloaded(spec, pick_dtype(dtype, device), Path(offload_folder))
    )
    return LocalChat(model, tokenizer, chosen, show_special=show_special, tell=tell)


def find_source(path: Path | str, adapter: Path | str | None = None) -> Source:
    """Say what stands behind `path`.

    Raises:
        UserError: a run folder together with an adapter, or a run that saved nothing yet.
    """
    folder = Path(path)
    if not is_run_folder(folder):
        return Source(ModelSpec(path=str(path), adapter=None if adapter is None else str(adapter)))
    if adapter is not None:
        raise UserError(
            f"{folder} is the folder of a run, which has its own adapter.",
            "Leave --adapter out, or give the base model instead of the run.",
            exit_code=2,
        )
    record = read_run(folder)
    trained = RunSpec.model_validate(record.spec).model
    base = str(record.base.get("path") or trained.path)
    if Path(base).is_absolute() and not Path(base).exists():
        raise UserError(
            f"The base model of this run is not in {base} any more.",
            f"Type: xtuner chat WHERE_IT_IS --adapter {folder / 'adapter'}",
        )
    shared: dict[str, Any] = {
        "path": base,
        "tokenizer": trained.tokenizer,
        "tokenizer_options": trained.tokenizer_options,
    }  # not trust_remote_code: the record may be somebody else's
    if record.adapter and (folder / record.adapter).is_dir():
        return Source(ModelSpec(**shared, adapter=str(folder / record.adapter)), record.template, is_run=True)
    last = find_last(folder)
    if last is None:
        raise nothing_saved(folder)
    return Source(ModelSpec(**shared, lora=trained.lora, weights=str(last)), record.template, is_run=True)


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """Return the torch dtype for a word; `auto` depends on the device.

    Raises:
        UserError: an unknown word.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise UserError(f"There is no dtype {dtype}.", f"Known: auto, {', '.join(DTYPES)}.", exit_code=2)
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _known_template(source: Source, tokenizer: Any) -> ChatTemplate | None:
    """The template that a run recorded or a checkpoint is recognised by; None: the tokenizer has one of its own."""
    found = source.template
    for folder in (source.model.adapter, source.model.path):
        found = found or (detect_template(folder) if folder else None)
    if found:
        return to_template(found)
    if tokenizer.chat_template:
        return None
    if source.is_run:
        return PLAIN  # trained on plain text, on a base that speaks no template either
    raise UserError(
        f"It is not known how {source.model.path} spells a conversation; it looks like a base model.",
        f"Name a template with --prompt-template: {', '.join(sorted(TEMPLATES))}.",
    )


def _load_offloaded(spec: ModelSpec, dtype: torch.dtype, folder: Path) -> nn.Module:
    """Load with accelerate's placement over all devices, CPU memory and, for the rest, files in `folder`."""
    if spec.quant is not None or spec.weights is not None:
        raise UserError(
            "--offload-folder works with 16- or 32-bit models and their adapters only.",
            "Leave --offload-folder or --bits out, or merge the run first.",
            exit_code=2,
        )
    kind = read_json(spec.path, "config.json").get("model_type")
    with explain(spec.path, "model"):
        model = AutoModelForCausalLM.from_pretrained(
            spec.path,
            dtype=dtype,
            device_map="auto",
            offload_folder=folder,
            trust_remote_code=spec.trust_remote_code and needs_remote_code(kind),
            adapter_kwargs=hub_options(spec.path),
            **hub_options(spec.path),
        )
    if spec.adapter is None:
        return model.eval()
    from xtuner.model.lora import open_adapter

    return open_adapter(model, spec.adapter).eval()
