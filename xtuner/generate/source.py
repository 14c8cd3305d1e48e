"""What stands behind a path that people give to talk to: a model, a base with an adapter, a run (no torch here)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtuner.checkpoint.run_record import is_run_folder, nothing_saved, read_run
from xtuner.config.spec import ModelSpec, RunSpec
from xtuner.errors import UserError


@dataclass(frozen=True)
class ChatSource:
    """How to load the model, and the template (name or fields) if a run recorded it."""

    model: ModelSpec
    template: str | dict[str, Any] | None = None
    is_run: bool = False


def find_source(path: Path | str, adapter: Path | str | None = None) -> ChatSource:
    """Say what stands behind `path`.

    Raises:
        UserError: a run folder together with an adapter, or a run that saved nothing yet.
    """
    folder = Path(path)
    if not is_run_folder(folder):
        return ChatSource(ModelSpec(path=str(path), adapter=None if adapter is None else str(adapter)))
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
        "max_position_embeddings": trained.max_position_embeddings,
        "resize_vocab": trained.resize_vocab,
    }  # not trust_remote_code: the record may be somebody else's
    if record.adapter and (folder / record.adapter).is_dir():
        return ChatSource(ModelSpec(**shared, adapter=str(folder / record.adapter)), record.template, is_run=True)
    from xtuner.checkpoint.state import find_last  # imports torch, which wrong paths need not wait for

    last = find_last(folder)
    if last is None:
        raise nothing_saved(folder)
    return ChatSource(ModelSpec(**shared, lora=trained.lora, weights=str(last)), record.template, is_run=True)
