"""Whether what is named can be a model or an adapter, answered before anything heavy is imported (no torch here)."""

import json
from pathlib import Path
from typing import Any

from xtuner.checkpoint.run_record import is_run_folder
from xtuner.errors import UserError
from xtuner.network import HUB_ID

LARGE = (".safetensors", ".bin", ".model", ".json")
LFS_NOTE = b"version https://git-lfs"
MOST_NOTE = 1024
"""Bytes; such a note has about 130."""
ADAPTER_CONFIG = "adapter_config.json"


def check_folder(path: str, files: tuple[str, ...]) -> None:
    """Refuse a path that is neither a folder with one of `files` nor looks like a hub id.

    Raises:
        UserError: says which of the two is missing.
    """
    if not path.strip():
        raise UserError("The name of the model is empty.", "Give the folder of a model, or a hub id.")
    folder = Path(path)
    if folder.suffix == ".pth" and folder.exists():
        raise UserError(
            f"{path} is a checkpoint of a training, not a model.",
            f"Give the folder of its run, {folder.parent}, or type: xtuner convert pth_to_hf CONFIG {path} ./hf",
        )
    if folder.is_file():
        raise UserError(f"{path} is a file; a model is a folder.", "Give the folder that holds config.json.")
    if folder.is_dir():
        if any((folder / name).is_file() for name in files):
            check_fetched(folder)
            return
        if is_adapter(folder):
            base = read_adapter_config(folder).get("base_model_name_or_path")
            raise UserError(
                f"{path} is an adapter, not a model.",
                f"Give the base model{f' ({base})' if base else ''} as the model, and this folder as adapter.",
            )
        if is_run_folder(folder):
            raise UserError(
                f"{path} is the folder of a run, not a model.",
                f"Make a model of it first: xtuner convert merge {path} ./merged",
            )
        raise UserError(f"{path} holds no {files[-1]}, so it is not a model.", "Give the folder of a model.")
    if not HUB_ID.fullmatch(path) or path.startswith("."):
        raise UserError(f"There is no model folder {path}.", "Check the path of the model.")


def check_fetched(folder: Path) -> None:
    """Refuse a folder that was cloned without Git LFS: its large files are notes of a few lines.

    Raises:
        UserError: names the first of them.
    """
    for file in sorted(folder.iterdir()):
        if file.suffix in LARGE and file.is_file() and file.stat().st_size < MOST_NOTE:
            with file.open("rb") as raw:
                is_note = raw.read(len(LFS_NOTE)) == LFS_NOTE
            if is_note:
                raise UserError(
                    f"{file} is only the note that Git LFS leaves in place of a large file.",
                    f"Fetch the files: git -C {folder} lfs pull",
                )


def is_adapter(folder: Path | str) -> bool:
    """Whether the folder holds a PEFT adapter."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def read_adapter_config(folder: Path | str) -> dict[str, Any]:
    """Read adapter_config.json.

    Raises:
        UserError: missing, not JSON, or not LoRA.
    """
    file = Path(folder) / ADAPTER_CONFIG
    if not file.is_file():
        below = Path(folder) / "adapter"
        if is_adapter(below):  # a run keeps it there
            raise UserError(f"There is no adapter in {folder} itself, it is one folder down.", f"Give {below}")
        missing = f"{ADAPTER_CONFIG} is missing" if Path(folder).is_dir() else "there is no such folder"
        raise UserError(
            f"There is no adapter in {folder} ({missing}).",
            "Give the folder that `xtuner convert pth_to_hf` wrote, or <run folder>/adapter.",
        )
    try:
        config = json.loads(file.read_text("utf-8"))
        kind = str(config.get("peft_type", "LORA"))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} is not a JSON object ({error}).", "Copy or download the adapter again.") from error
    if kind.upper() != "LORA":
        raise UserError(f"{folder} is an adapter of the kind {kind}; only LoRA is supported.", "Use a LoRA adapter.")
    return config
