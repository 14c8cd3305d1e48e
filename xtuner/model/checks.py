"""What can be wrong with a checkpoint, said in a sentence: missing, cut short, of an unknown kind, too large."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers.utils.hub import cached_file

from xtuner.checkpoint.run_record import is_run_folder
from xtuner.errors import UserError, is_out_of_memory
from xtuner.network import HUB_ID, hub_is_reachable

LARGE = (".safetensors", ".bin", ".model", ".json")
LFS_NOTE = b"version https://git-lfs"
MOST_NOTE = 1024
"""Bytes; such a note has about 130."""


def check_folder(path: str, files: tuple[str, ...]) -> None:
    """Refuse a path that is neither a folder with one of `files` nor looks like a hub id.

    Raises:
        UserError: says which of the two is missing.
    """
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"{path} is a file; a model is a folder.", "Give the folder that holds config.json.")
    if folder.is_dir():
        if any((folder / name).is_file() for name in files):
            check_fetched(folder)
            return
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{path} is an adapter, not a model.", "Give the base model as the model, and this folder as adapter."
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


def read_json(path: str, name: str) -> dict[str, Any]:
    """Read a JSON file of a model folder or hub id; an absent one is empty.

    Raises:
        UserError: it is not JSON.
    """
    file: Path | None = Path(path) / name
    if not Path(path).is_dir():
        with explain(path, "model"):
            found = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub_options(path))
        file = Path(found) if found else None
    if file is None or not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}.", "Download or copy the model again.") from error
    return values if isinstance(values, dict) else {}


def hub_options(path: str) -> dict[str, bool]:
    """Return keyword arguments for loading `path`: without a network, only what was downloaded before is looked at.

    The library itself would try again for minutes.
    """
    return {} if Path(path).is_dir() or hub_is_reachable() else {"local_files_only": True}


def check_vocabulary(model: nn.Module, highest: int, path: str) -> None:
    """Refuse tokens that the model has no embedding for; `highest` is the largest id, `path` names the tokenizer.

    A card answers such an id with an error that says nothing, and takes the process with it.

    Raises:
        UserError: the tokenizer belongs to another model.
    """
    known = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if highest >= known:
        raise UserError(
            f"The tokenizer in {path} gives token {highest}, but the model knows only {known} (0 to {known - 1}).",
            "The two come from different models; download or copy the original tokenizer again.",
        )


@contextmanager
def explain(path: str, what: str) -> Iterator[None]:
    """Turn what the libraries raise while the `what` of `path` is loaded into one sentence."""
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise _no_memory(path) from error
    except SafetensorError as error:
        raise UserError(
            f"The weights of {path} cannot be read: {_first_line(error)}.",
            "The files are damaged or cut short; download or copy the model again.",
        ) from error
    except StrictDataclassError as error:
        text = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise UserError(f"The config.json of {path} is wrong: {text[:300]}.", "Download or copy it again.") from error
    except ImportError as error:
        raise UserError(f"The {what} {path} needs a package: {_first_line(error)}.") from error
    except OSError as error:
        if Path(path).is_dir():
            fix = "Files are missing or damaged; download or copy the model again."
            raise UserError(f"The {what} in {path} cannot be loaded: {_first_line(error)}.", fix) from error
        raise not_found(path) from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, EOFError) as error:
        raise _explain_other(path, what, error) from error


def not_found(path: str) -> UserError:
    """Return the error for a path without a config: an empty one here, or none on the hub."""
    if Path(path).is_dir():
        return UserError(f"The config.json of {path} is empty.", "Download or copy the model again.")
    return UserError(
        f"{path} is neither a folder here nor a model that can be reached on the hub.",
        "Check the spelling and the network, or download the model and give its folder.",
    )


def _explain_other(path: str, what: str, error: Exception) -> UserError:
    text = str(error)
    if is_out_of_memory(error):
        return _no_memory(path)
    if "does not recognize this architecture" in text or "Unrecognized" in text:
        kind = read_json(path, "config.json").get("model_type") if Path(path).is_dir() else None
        known = (
            f"of the kind {kind}, which is not known" if kind else "of an unknown kind (no model_type in config.json)"
        )
        return UserError(f"{path} is a model {known}.", "Use another model, or a newer transformers.")
    if "trust_remote_code" in text:
        return UserError(
            f"{path} brings its own program code, which is not run unless you ask for it.",
            "If you trust it, set model.trust_remote_code: true.",
        )
    return UserError(
        f"The {what} in {path} cannot be loaded: {_first_line(error)}.", "Check or download its files again."
    )


def _no_memory(path: str) -> UserError:
    return UserError(
        f"There is not enough memory to load {path}.",
        "Use a smaller model, or load it in 4 bits (model.quant), or free memory.",
    )


def _first_line(error: Exception) -> str:
    """Return what a library says, without its advice in the lines after."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:300]
