"""`key=value` on a `RunSpec`: full dotted keys, or any last part that only one setting has (`lr=1e-4`)."""

from collections.abc import Sequence
from typing import Any, get_args, get_origin

from xtuner.config.check import to_spec
from xtuner.config.choice import Choice
from xtuner.config.override import parse_text, parse_value, put_path
from xtuner.config.schema import annotation_at, is_open, setting_keys
from xtuner.config.spec import RunSpec
from xtuner.config.table import COMMAND_LINE, Table
from xtuner.errors import UserError, did_you_mean


def override_spec(spec: RunSpec, words: Sequence[str]) -> RunSpec:
    """Return the spec with every `key=value` of `words` applied, in order.

    A setting inside a part that is off turns the part on: `r=8` makes a LoRA of rank 8.

    Raises:
        UserError: not key=value, an unknown or ambiguous key (exit code 2), or a value that does not fit.
    """
    if not words:
        return spec
    table = _to_table(spec.model_dump())
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{word} is not a setting.", "Settings are written key=value, for example lr=1e-4.", 2)
        key = full_key(key.strip())
        value = _fitting_value(key, text)
        if annotation_at(_parts(key)) is Choice and isinstance(value, str):
            value = Table({"name": value, "options": Table(line=COMMAND_LINE)}, line=COMMAND_LINE)
        put_path(table, key, value)
    return to_spec(table)


def _to_table(value: Any) -> Any:
    """Copy nested dicts as tables, so that errors say where a value comes from."""
    if isinstance(value, dict):
        return Table({key: _to_table(item) for key, item in value.items()}, line=COMMAND_LINE)
    return [_to_table(item) for item in value] if isinstance(value, list) else value


def full_key(key: str) -> str:
    """Complete a key: "lr" is "optim.lr", "objective.beta" an option of the objective.

    Of several settings that end so, the one that lies least deep is meant: "r" is "model.lora.r", not
    "model.vision.lora.r".

    Raises:
        UserError: no setting ends so, or more than one equally deep; names the candidates (exit code 2).
    """
    known = setting_keys()
    if key in known:
        return key
    if (inside := _inside(key)) is not None:
        return inside
    matches = [name for name in known if name.endswith(f".{key}")]
    least = min((name.count(".") for name in matches), default=0)
    matches = [name for name in matches if name.count(".") == least]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"{key} could be {' or '.join(matches)}.", f"Write it in full: {matches[0]}=...", 2)
    near = did_you_mean(key, known if "." in key else {name.rsplit(".", 1)[-1] for name in known})
    raise UserError(f"There is no setting {key}.", near or f"Known parts: {', '.join(RunSpec.model_fields)}.", 2)


def _inside(key: str) -> str | None:
    """Complete a key that leads into a list item (data.train.0.limit) or an open part (objective.beta)."""
    path = _parts(key)
    for cut in range(1, len(path)):
        owner = annotation_at(path[:cut])
        if owner is not None and is_open(owner):
            rest = path[cut:]
            is_choice = owner is Choice and rest[0] not in ("name", "options")
            return ".".join(str(part) for part in (*path[:cut], *(("options",) if is_choice else ()), *rest))
    return key if any(isinstance(part, int) for part in path) and annotation_at(path) is not None else None


def _parts(key: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in key.split(".")]


def _fitting_value(key: str, text: str) -> Any:
    """Return the value that the words stand for, as the setting takes it.

    Where it is a text, `7` and `a,b` stay the texts that were typed; where it is a list, one value is a list of one.
    """
    annotation = annotation_at(_parts(key))
    kinds = {annotation, *get_args(annotation)}
    several = {kind for kind in kinds if get_origin(kind) in (list, tuple, dict)}
    if str in kinds and not several and not {bool, int, float} & kinds:
        return parse_text(text)
    value = parse_value(text)
    if isinstance(value, bool | int | float) and (str in kinds or kinds == {list[str]}):
        value = text.strip()
    alone = not isinstance(value, list | tuple) and value is not None
    return [value] if alone and get_origin(annotation) is list else value
