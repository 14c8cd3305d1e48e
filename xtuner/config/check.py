"""Turns a `Table` into a `RunSpec`, and every mistake in it into one sentence with key, file and line."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from xtuner.config.part import CLASH, IDLE
from xtuner.config.schema import annotation_at, settings_of
from xtuner.config.spec import RunSpec
from xtuner.config.table import Table
from xtuner.errors import UserError, did_you_mean

Keys = list[str | int]


def to_spec(table: Mapping[str, Any]) -> RunSpec:
    """Check a table of settings.

    Raises:
        UserError: unknown key (with the nearest known one), wrong value, or a key that is missing; says file and line.
    """
    try:
        return RunSpec.model_validate(dict(table))
    except ValidationError as error:
        raise _explain(error.errors(include_url=False), table) from error


def _explain(mistakes: Sequence[ErrorDetails], table: Mapping[str, Any]) -> UserError:
    # of the branches of a union, the one that got furthest is the one that was meant
    mistake = max(mistakes, key=lambda one: len(_path(one["loc"], table)))
    path = _path(mistake["loc"], table)
    if mistake["type"] == CLASH:
        return UserError(f"{mistake['ctx']['what']}.", mistake["ctx"]["fix"])
    if mistake["type"] == IDLE:
        path.append(mistake["ctx"]["name"])
    key = ".".join(str(part) for part in path)
    where = _where(path, table)
    place = f"{where}: " if where else ""
    if mistake["type"] == "extra_forbidden":
        known = list(settings_of(annotation_at(path[:-1])))
        hint = did_you_mean(str(path[-1]), known) or f"Known here: {', '.join(known)}."
        return UserError(f"{place}there is no setting {key}.", hint)
    if mistake["type"] == "missing":
        return UserError(f"{place}the setting {key} is missing.", f"Add {key}.")
    if mistake["type"] == IDLE:
        return UserError(f"{place}{key} has no effect {mistake['ctx']['why']}.", f"Leave {path[-1]} at its default.")
    said = f"{place}{key} is {_short(mistake['input'])}"
    if mistake["type"] == "model_type":
        known = list(settings_of(annotation_at(path)))
        return UserError(f"{said}; it is a group of settings.", f"Put settings under {key}: {', '.join(known)}.")
    if mistake["type"] == "list_type":
        return UserError(f"{said}; it should be a list.", f"Put brackets around what belongs to {key}.")
    message = mistake["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return UserError(f"{said}; it {message}.", f"Change {key}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _path(location: Sequence[str | int], table: Mapping[str, Any]) -> Keys:
    """Keep the parts of pydantic's location that are keys, not names of union branches or of models."""
    path: Keys = []
    owner: Any = table
    for part in location:
        if isinstance(part, int):
            if isinstance(owner, Mapping):
                continue  # one source alone needs no list around it
            path.append(part)
            owner = owner[part] if isinstance(owner, list) and part < len(owner) else None
        elif isinstance(owner, Mapping) and part in owner:
            path.append(part)
            owner = owner[part]
        elif part in settings_of(annotation_at(path)):
            path.append(part)
            owner = None
    return path


def _where(path: Keys, table: Mapping[str, Any]) -> str:
    owner: Any = table
    where = ""
    for part in path:
        if isinstance(owner, Table):
            where = owner.where(str(part))
            owner = owner.get(str(part))
        else:
            owner = owner[part] if isinstance(owner, list) and isinstance(part, int) and part < len(owner) else None
    return where
