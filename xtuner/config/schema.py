"""What settings there are: walks the fields of `RunSpec`, for errors, overrides and editors."""

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel

from xtuner.config.choice import Choice
from xtuner.config.spec import RunSpec


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a `RunSpec`, for editors."""
    return RunSpec.model_json_schema()


def settings_of(annotation: Any, *, items: bool = True) -> dict[str, Any]:
    """Name -> annotation of the settings that something annotated so has; with `items` those of list items too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {name: info.annotation for name, info in annotation.model_fields.items()}
    found: dict[str, Any] = {}
    if items or getattr(annotation, "__origin__", None) is not list:
        for part in get_args(annotation):
            found.update(settings_of(part, items=items))
    return found


def annotation_at(path: Sequence[str | int]) -> Any:
    """Return the annotation of a path of a `RunSpec` (numbers are places in lists), None where there is no setting."""
    annotation: Any = RunSpec
    for part in path:
        if not isinstance(part, int):
            annotation = settings_of(annotation).get(part)
    return annotation


def is_open(annotation: Any) -> bool:
    """Whether keys below this setting are free: a `Choice` takes options of its own, a dict any key."""
    if annotation is Choice or getattr(annotation, "__origin__", None) is dict:
        return True
    return any(is_open(part) for part in get_args(annotation))


def setting_keys(annotation: Any = RunSpec, prefix: str = "") -> list[str]:
    """Every dotted key, parts and settings alike; what is inside lists and open parts is not among them."""
    keys = []
    for name, below in settings_of(annotation, items=False).items():
        keys.append(prefix + name)
        if not is_open(below):
            keys.extend(setting_keys(below, f"{prefix}{name}."))
    return keys
