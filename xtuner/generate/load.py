"""From a path that people type (a model, a base with an adapter, a run folder) to a model one can talk to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from xtuner.checkpoint.dtype import DTYPES, SHORT
from xtuner.checkpoint.model_folder import check_folder
from xtuner.config.spec import ModelSpec, QuantSpec
from xtuner.conversation.builtin import PLAIN, find_template, to_template
from xtuner.conversation.detect import advise_template, detect_template
from xtuner.conversation.template import ChatTemplate
from xtuner.errors import UserError
from xtuner.generate.local import LocalChat
from xtuner.generate.source import ChatSource, find_source
from xtuner.log import LOGGER
from xtuner.model.checks import explain, hub_options, read_json
from xtuner.model.foreign_code import announce_code
from xtuner.model.load import load_model, load_tokenizer
from xtuner.model.register import needs_remote_code

WORDS = {**SHORT, **DTYPES}


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
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = LOGGER.info,
) -> LocalChat:
    """Load the model at `path` (a model folder or hub id, or the folder of a run) for talking.

    `bits` stores the weights in 4 or 8 bits. `dtype` is `auto` (fp32 on a CPU; on a GPU bf16, or fp16 where bf16 is
    missing), fp16, bf16 or fp32. `offload_folder` lets a model that is larger than the memory spread over GPUs, CPU
    memory and that folder. `template` is a name; without it: the run's, what the checkpoint is recognised by, the
    chat template of its tokenizer. `trust_remote_code` lets a model of a kind that is not known here run the program
    code that it brings, whose files are named.

    Raises:
        UserError: no such model, adapter or template; parts that do not fit together; no memory; no template known.
    """
    named = find_template(template) if template else None
    source = find_source(path, adapter)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    spec = source.model.model_copy(
        update={
            "quant": QuantSpec(bits=bits) if bits else None,
            "recompute": False,
            "trust_remote_code": trust_remote_code,
        }
    )
    check_folder(spec.path, ("config.json",))
    if trust_remote_code:
        announce_code(spec.path, tell)
    tokenizer = load_tokenizer(
        _tokenizer_home(spec), options=spec.tokenizer_options, trust_remote_code=trust_remote_code
    )
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


def _tokenizer_home(spec: ModelSpec) -> str:
    """Where the tokenizer is: an adapter brings one if it was trained with more tokens than its base knows."""
    brought = spec.adapter is not None and (Path(spec.adapter) / "tokenizer_config.json").is_file()
    return str(spec.adapter) if brought and spec.tokenizer is None else spec.tokenizer or spec.path


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """Return the torch dtype for a word; `auto` depends on the device.

    Raises:
        UserError: an unknown word.
    """
    if dtype in WORDS:
        return WORDS[dtype]
    if dtype != "auto":
        raise UserError(f"There is no dtype {dtype}.", f"Known: auto, {', '.join(WORDS)}.", exit_code=2)
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _known_template(source: ChatSource, tokenizer: Any) -> ChatTemplate | None:
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
        f"Name a template with --prompt-template: {advise_template(source.model.path)}.",
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
