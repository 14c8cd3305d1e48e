"""Owns data sets that are no plain files: saved by `datasets`, on the hub of Hugging Face, or on that of ModelScope."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtuner.config.spec import SourceSpec
from xtuner.errors import UserError
from xtuner.network import hub_is_reachable

if TYPE_CHECKING:
    from datasets import Dataset


def load_saved(folder: Path, spec: SourceSpec) -> "Dataset":
    """Load what `save_to_disk` wrote.

    Raises:
        UserError: it cannot be read, or has no such split.
    """
    import datasets  # imports pandas and more: only those who need it wait for it

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a data set that can be read: {_line(error)}", "Save it again.") from error
    return _pick_split(loaded, spec.split, spec.path)


def load_huggingface(spec: SourceSpec) -> "Dataset":
    """Load a data set of the Hugging Face hub, or its copy in the cache.

    Raises:
        UserError: it cannot be loaded, or has no such split.
    """
    if not hub_is_reachable():
        os.environ["HF_DATASETS_OFFLINE"] = "1"  # read when the library is imported: only what is here is looked at
    import datasets  # as above

    try:
        loaded = datasets.load_dataset(
            spec.path, spec.name, data_dir=spec.data_dir, data_files=spec.files, split=spec.split
        )
    except Exception as error:  # the library raises a dozen kinds; each means the same to the user
        raise UserError(
            f"{spec.path} is no file or folder here, and could not be loaded from the hub: {_line(error)}",
            "Check the name; without a network, give the path of a folder or file.",
        ) from error
    return _pick_split(loaded, spec.split, spec.path)


def load_modelscope(spec: SourceSpec) -> "Dataset":
    """Load a data set of ModelScope by its own library.

    Raises:
        UserError: the library is not installed, or the data set cannot be loaded.
    """
    import datasets  # as above

    try:
        from modelscope.msdatasets import MsDataset
    except ImportError as error:
        raise UserError(
            f"{spec.path} is a data set of ModelScope, and the library modelscope is not installed.",
            "Type: pip install modelscope (or download the data set and give the path of its folder)",
        ) from error
    options = {"subset_name": spec.name, "data_dir": spec.data_dir, "data_files": spec.files}
    try:
        loaded = MsDataset.load(
            spec.path, split=spec.split, **{key: value for key, value in options.items() if value is not None}
        )
        splits = loaded if isinstance(loaded, dict) else {spec.split: loaded}
        found = [part if isinstance(part, datasets.Dataset) else part.to_hf_dataset() for part in splits.values()]
        return found[0] if len(found) == 1 else datasets.concatenate_datasets(found)
    except Exception as error:  # as above
        raise UserError(
            f"{spec.path} could not be loaded from ModelScope: {_line(error)}",
            "Check the name; without a network, give the path of a folder or file.",
        ) from error


def _pick_split(loaded: Any, split: str | None, label: str) -> "Dataset":
    import datasets  # as above

    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split is None:
        return datasets.concatenate_datasets(list(loaded.values()))
    if split not in loaded:
        raise UserError(f"{label} has no split {split}.", f"It has: {', '.join(loaded)}.")
    return loaded[split]


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."
