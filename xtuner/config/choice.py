"""A named part with its options: the whole plug-in system."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xtuner.config.ref import Ref
from xtuner.errors import UserError, did_you_mean


class Choice(BaseModel):
    """A name of a table (or `package.module:attribute`, `file.py:attribute`) and keyword options for it.

    In YAML a bare string is a `Choice` without options, and `{name: dpo, beta: 0.1}` one with.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "name" in value and "options" not in value:
            return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
        return value


def pick(table: Mapping[str, str], name: str, kind: str) -> Any:
    """Return what `name` stands for: a row of `table` (values are `module:attribute`), or the thing `name` addresses.

    Raises:
        UserError: neither; names the nearest row.
    """
    check_name(table, name, kind)
    return Ref(table.get(name, name)).resolve()


def check_name(table: Mapping[str, str], name: str, kind: str) -> None:
    """Make sure that `name` is a row of `table` or addresses something, without importing it.

    Raises:
        UserError: neither; names the nearest row.
    """
    if name not in table and ":" not in name:
        hint = did_you_mean(name, table) or f"Known: {', '.join(sorted(table))}."
        raise UserError(f"There is no {kind} called {name}.", hint)


def build(table: Mapping[str, str], choice: Choice, kind: str, **given: Any) -> Any:
    """Call what `choice` names with its options and `given`.

    Raises:
        UserError: unknown name, or an option that the part does not take.
    """
    part = pick(table, choice.name, kind)
    if dataclasses.is_dataclass(part):
        known = [field.name for field in dataclasses.fields(part) if field.init]
    else:
        known = list(inspect.signature(part).parameters)
    for option in choice.options:
        if option not in known:
            offered = [name for name in known if name not in given]
            hint = did_you_mean(option, offered) or f"Known: {', '.join(offered) or 'none'}."
            raise UserError(f"The {kind} {choice.name} has no option {option}.", hint)
    return part(**choice.options, **given)
