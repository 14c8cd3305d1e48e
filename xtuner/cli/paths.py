"""Refuses wrong paths of models and data before the libraries are imported that would read them."""

from pathlib import Path
from typing import TYPE_CHECKING

from xtuner.checkpoint.model_folder import check_folder, read_adapter_config
from xtuner.checkpoint.path import is_state, no_checkpoint, strip_colon

if TYPE_CHECKING:
    from xtuner.config.spec import RunSpec

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "config.json")


def check_run(spec: "RunSpec") -> None:
    """Look at every path that a run begins with; what looks like a hub id is left to the network.

    Raises:
        UserError: no such model, tokenizer, adapter, checkpoint or data file.
    """
    from xtuner.dataset.source import find_files

    model = spec.model
    check_model(model.path, model.adapter)
    if model.tokenizer is not None:
        check_folder(model.tokenizer, TOKENIZER_FILES)
    if model.weights is not None:
        check_state(model.weights)
    validation = spec.data.validation
    for source in [*spec.data.train, *(validation if isinstance(validation, list) else [])]:
        find_files(source)


def check_model(path: str, adapter: str | None = None) -> None:
    """Look at the folder of a model, and at an adapter for it.

    Raises:
        UserError: no such folder, or one that holds something else.
    """
    check_folder(path, ("config.json",))
    if adapter is None:
        return
    if is_state(adapter):
        check_state(adapter)
    else:
        read_adapter_config(adapter)


def check_state(path: str) -> None:
    """Look whether a checkpoint is there.

    Raises:
        UserError: it is not.
    """
    found = strip_colon(Path(path))
    if not found.exists():
        raise no_checkpoint(found)
