"""Reads a config file of any kind: 0.1.x Python text, a dump of it, YAML of a `RunSpec`, or the record of a run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xtuner.config.override import put_path
from xtuner.config.python_text import read_python
from xtuner.config.table import Table
from xtuner.errors import UserError

Kind = Literal["python", "yaml", "run"]
RUN_RECORD = "run.json"
"""The name of the record in a work dir; its `spec` is a `RunSpec`."""
KINDS: dict[str, Kind] = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "run"}


@dataclass
class Config:
    """A config as read. `kind` says which language: "python" (0.1.x) or a `RunSpec` ("yaml", or "run": JSON)."""

    values: Table
    file: Path
    kind: Kind
    read: frozenset[str] = frozenset()
    """Python: names that the file itself has used."""
    added: tuple[str, ...] = field(default=())
    """Top-level names that only an override has given a value."""
    notes: tuple[str, ...] = ()
    """Python: sentences about what is written without effect."""


def read_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config file; imports of a Python config are not executed.

    `overrides` maps dotted keys to values. In a Python config a top-level name takes its new value where it is
    assigned, so that nested uses see it; dotted keys (also list indices) are applied afterwards.

    Raises:
        UserError: no such file, not readable, or not in the language; says file and line.
    """
    if path.is_dir() and (path / RUN_RECORD).is_file():
        path = path / RUN_RECORD
    kind = KINDS.get(path.suffix)
    if kind is None:
        raise UserError(f"{path} is not a config.", "A config is a .py, .yaml or .json file, or the folder of a run.")
    return read_text(load_text(path), path, kind, overrides)


def read_text(text: str, path: Path, kind: Kind, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config text; `path` is where it comes from (for relative imports and errors). See `read_config`."""
    overrides = overrides or {}
    top = {key: value for key, value in overrides.items() if "." not in key}
    dotted = {key: value for key, value in overrides.items() if "." in key}
    read: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    if kind == "python":
        python = read_python(text, str(path), top)
        values, read, notes = python.values, frozenset(python.read), tuple(python.notes)
    elif kind == "yaml":
        from xtuner.config.yaml_text import read_yaml  # 30 ms that Python configs need not pay

        values = read_yaml(text, str(path))
    else:
        values = read_run(text, path)
    added = tuple(dict.fromkeys(first for key in overrides if (first := key.split(".")[0]) not in values))
    for key, value in top.items():
        if kind != "python" or key in added:
            put_path(values, key, value)
    for key, value in dotted.items():
        put_path(values, key, value)
    return Config(values, path, kind, read, added, notes)


def load_text(path: Path) -> str:
    """Load a text file.

    Raises:
        UserError: missing, a folder, empty, or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text in UTF-8.", "Save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", f"Check with: ls -l {path}") from error
    if not text.strip():
        raise UserError(f"{path} is empty.", "Copy one to start from: xtuner list-cfg; xtuner copy-cfg NAME .")
    return text


def read_run(text: str, path: Path) -> Table:
    """Read the JSON of a run record (its `spec`), or of a spec itself.

    Raises:
        UserError: not JSON, or no spec in it.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: this is not JSON: {error.msg}.", "Give the config instead.") from error
    spec = record.get("spec", record) if isinstance(record, dict) else None
    if not isinstance(spec, dict) or "model" not in spec:
        raise UserError(f"{path} is not the record of a run.", "Give a config, or the folder that a run has written.")
    return Table(spec, file=str(path))
