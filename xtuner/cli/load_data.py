"""Whatever a user names as data becomes a `DataSpec` and a tokenizer: a config, or data files and a model."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtuner.errors import UserError

if TYPE_CHECKING:
    from xtuner.config.spec import DataSpec, RunSpec

PAIRED = ("dpo", "orpo", "reward")
"""Objectives that learn from preferences."""
RECORD_BYTES = 1 << 20
"""A config is never larger than this; data may be."""


@dataclass(frozen=True)
class LoadedData:
    """Data to look at, and the tokenizer that turns it into tokens."""

    spec: "DataSpec"
    tokenizer: Any
    seed: int
    pairs: bool = False
    """Rows are preferences: a chosen and a rejected answer."""


def load_data(words: Sequence[str], *, model: str | None = None, template: str | None = None) -> LoadedData:
    """Load a config (file, built-in name, run folder) or data files; `key=value` words are settings of the run.

    `model` and `template` replace those of a config. Files without a model are looked at with the built-in one.

    Raises:
        UserError: nothing or several configs named (exit code 2), or what cannot be found or understood.
    """
    from xtuner.config.check import to_spec
    from xtuner.config.spec_override import override_spec
    from xtuner.conversation.builtin import find_template

    names = [word for word in words if "=" not in word or Path(word).exists()]
    settings = [word for word in words if word not in names]
    if not names:
        raise UserError("No config and no data file is named.", "Name a config, or a file such as data.jsonl.", 2)
    if template is not None and ":" not in template:
        find_template(template)
    configs = [name for name in names if is_config(name)]
    if configs and len(names) > 1:
        raise UserError(
            f"{configs[0]} is a config, and {len(names) - 1} more names are given.",
            "Name one config, or data files alone.",
            exit_code=2,
        )
    if configs:
        from xtuner.cli.load import load_run

        spec = load_run(configs[0], overrides=settings).spec
    else:
        path = model or _built_in_model()
        spec = override_spec(to_spec({"model": {"path": path}, "data": {"train": names}}), settings)
    data = spec.data if template is None else spec.data.model_copy(update={"template": template})
    from xtuner.model.load import load_tokenizer

    try:
        tokenizer = load_tokenizer(
            model or spec.model.tokenizer or spec.model.path,
            options=None if model else spec.model.tokenizer_options,
            trust_remote_code=spec.model.trust_remote_code,
        )
    except UserError as error:
        if model is not None:
            raise
        raise UserError(error.what, f"{error.fix} --model FOLDER looks at the data with another tokenizer.") from error
    return LoadedData(data, tokenizer, spec.seed, holds_pairs(spec, is_config=bool(configs)))


def holds_pairs(spec: "RunSpec", *, is_config: bool) -> bool:
    """Whether the rows are preferences: a config says what learns from them, data files show it."""
    from xtuner.dataset import PAIR_FORMATS
    from xtuner.dataset.formats.recognise import fold_columns
    from xtuner.dataset.source import open_source

    if is_config:
        return spec.objective.name in PAIRED
    source = spec.data.train[0]
    if source.format is not None:
        return source.format in PAIR_FORMATS
    first = next(iter(open_source(source).rows()), {})
    names = {source.rename.get(name, name): None for name in first}
    folded = fold_columns([names])
    return {"chosen", "rejected"} <= {folded.get(name, name) for name in names}


def is_config(word: str) -> bool:
    """Whether a word names a config, not data."""
    from xtuner.catalog.names import names
    from xtuner.config.reader import KINDS, RUN_RECORD
    from xtuner.config.spec import DATA_SUFFIXES

    path = Path(word.rstrip("/:")).expanduser()
    if path.is_dir():
        return (path / RUN_RECORD).is_file()
    if path.suffix == ".json" and path.is_file():
        return _is_record(path)
    if path.exists():
        return path.suffix in KINDS
    # what is nowhere is a slip in the name of a config, unless it looks like a file or a data set of the hub
    return word in names() or not (path.suffix.lower() in DATA_SUFFIXES or "/" in word)


def _is_record(file: Path) -> bool:
    """Whether a JSON file is a `RunSpec` or the record of a run, not rows."""
    if file.stat().st_size > RECORD_BYTES:
        return False
    try:
        value = json.loads(file.read_bytes())
    except ValueError:
        return False
    return isinstance(value, dict) and ("spec" in value or {"model", "data"} <= set(value))


def _built_in_model() -> str:
    from xtuner.apps.quickstart import built_in_model

    print("No --model is given: tokens and template are those of the built-in model.", file=sys.stderr)
    return str(built_in_model())
