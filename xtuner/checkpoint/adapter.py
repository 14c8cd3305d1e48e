"""LoRA adapters on disk, in the folder layout of PEFT (adapter_config.json, adapter_model.*, a model card)."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from xtuner.checkpoint.folder import fresh_folder, writing
from xtuner.checkpoint.model_folder import ADAPTER_CONFIG, read_adapter_config
from xtuner.checkpoint.shards import load_bin, reading, save_tensors
from xtuner.errors import UserError

WEIGHTS_SAFE = "adapter_model.safetensors"
WEIGHTS_BIN = "adapter_model.bin"
CHAT_TEMPLATE = "chat_template.jinja"
BASE_CHANGES = "base_changes.json"
"""What config.json of the base must say differently under an adapter, such as stretched positions."""
PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model's modules."""


def read_adapter(folder: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a PEFT folder: its config and its tensors by their names in the file (`base_model.model....lora_A.weight`).

    Raises:
        UserError: no adapter, another kind than LoRA, no weights, or weights cut short.
    """
    folder = Path(folder)
    config = read_adapter_config(folder)
    if (folder / WEIGHTS_SAFE).is_file():
        with reading(folder / WEIGHTS_SAFE):
            return config, load_file(folder / WEIGHTS_SAFE)
    if (folder / WEIGHTS_BIN).is_file():
        return config, load_bin(folder / WEIGHTS_BIN, mapped=False)
    raise UserError(
        f"{folder} has an {ADAPTER_CONFIG} and no weights ({WEIGHTS_SAFE} or {WEIGHTS_BIN}).",
        "Copy or download the adapter again.",
    )


def write_adapter(
    folder: Path | str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    safe: bool = True,
    *,
    chat_template: str | None = None,
    extra: Mapping[str, str] | None = None,
    base_changes: Mapping[str, Any] | None = None,
    add: Callable[[Path], object] | None = None,
) -> None:
    """Write a PEFT folder, whole or not at all.

    `config` are the fields of a PEFT `LoraConfig`; `tensors` carry the names of the file (`file_name`).
    `chat_template` (Jinja) is the template that the adapter was trained with; `extra` are further text files, and
    `base_changes` what config.json of the base must say differently under it. `add` puts more into the folder.

    Raises:
        UserError: `folder` is a file or cannot be written, or the disk is full.
    """
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", **config, "inference_mode": True}
    config = {key: sorted(value) if isinstance(value, set | frozenset) else value for key, value in config.items()}
    texts = {ADAPTER_CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n", "README.md": render_card(config)}
    if chat_template is not None:
        texts[CHAT_TEMPLATE] = chat_template
    if base_changes:
        texts[BASE_CHANGES] = json.dumps(base_changes, indent=2) + "\n"
        texts["README.md"] += f"\nUnder it config.json of the base says: `{json.dumps(base_changes)}`\n"
    with fresh_folder(Path(folder)) as aside:
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_tensors(aside / (WEIGHTS_SAFE if safe else WEIGHTS_BIN), plain, safe=safe)
        with writing(Path(folder)):
            if add is not None:
                add(aside)
            for name, text in {**texts, **(extra or {})}.items():
                (aside / name).write_text(text, "utf-8")


def read_base_changes(folder: Path | str) -> dict[str, Any]:
    """Return what config.json of the base must say differently under the adapter in `folder`.

    Raises:
        UserError: the file is no JSON object.
    """
    file = Path(folder) / BASE_CHANGES
    if not file.is_file():
        return {}
    try:
        changes = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}.", "Copy the adapter again.") from error
    if not isinstance(changes, dict) or changes.keys() - {"rope_scaling", "rope_parameters"}:
        raise UserError(f"{file} does not say how positions are stretched.", "Copy the adapter again.")
    return changes


def file_name(name: str) -> str | None:
    """Return the name in a PEFT file of a tensor in a training state, or None if it is no part of an adapter.

    `llm.base_model.model.x.lora_A.default.weight` -> `base_model.model.x.lora_A.weight`; also bare PEFT names without
    `llm.`. Modules that are trained whole (`modules_to_save`) and biases appear under their plain names.
    """
    name = name.removeprefix("llm.")
    if not name.startswith(PREFIX):
        return None
    parts = name.split(".")
    if "modules_to_save" in parts:
        place = parts.index("modules_to_save")
        rest = parts[place + 1 :]
        return ".".join(parts[:place] + (rest[1:] if rest[0] == "default" else rest))
    for place, part in enumerate(parts):
        if part.startswith("lora_") and parts[place + 1 : place + 2] == ["default"]:
            rest = [] if part == "lora_magnitude_vector" else parts[place + 2 :]  # a bare vector in PEFT's files
            return ".".join([*parts[: place + 1], *rest])
    return name


def module_name(name: str) -> str:
    """Return the module that a tensor of a PEFT file belongs to: `base_model.model.x.lora_A.weight` -> `x`."""
    parts = name.removeprefix(PREFIX).split(".")
    for place, part in enumerate(parts):
        if part.startswith("lora_") or part == "base_layer":
            return ".".join(parts[:place])
    return ".".join(parts[:-1])


def render_card(config: Mapping[str, Any]) -> str:
    """Return the README.md of an adapter: what it is and how to use it, and no claim that nobody checked."""
    base = str(config.get("base_model_name_or_path") or "")
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()
    front = ["library_name: peft", *([f"base_model: {base}"] if is_hub_id else []), "tags: [lora, xtuner]"]
    targets = config.get("target_modules")
    targets = ", ".join(targets) if isinstance(targets, list) else str(targets)
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            "# LoRA adapter",
            "",
            f"An adapter for `{base or 'a base model'}`, trained with XTuner. It works only together with that model.",
            "",
            f"- rank {config.get('r')}, alpha {config.get('lora_alpha')}, on the layers: {targets}",
            "- data, evaluation, licence, known faults: not stated yet. Whoever publishes this should add them.",
            "",
            "```",
            f"xtuner chat {base or 'BASE_MODEL'} --adapter THIS_FOLDER",
            f"xtuner convert merge {base or 'BASE_MODEL'} THIS_FOLDER MERGED_FOLDER",
            "```",
            "",
        ]
    )
