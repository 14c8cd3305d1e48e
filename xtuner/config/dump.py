"""Writes configs: a 0.1.x config as the dump that old work dirs hold, a `RunSpec` as short YAML."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from xtuner.config.choice import Choice
from xtuner.config.ref import Ref
from xtuner.config.spec import RunSpec, SourceSpec

WIDTH = 79


def dump_python(values: Mapping[str, Any]) -> str:
    """Render top-level variables: sorted, imported names as dotted strings, as 0.1.x put it into the work dir; what is
    inside them stands in the order in which it was written.

    Reading the text back gives the same settings, and rendering those the same text.
    """
    return "".join(f"{name} = {_python(values[name], 0, len(name) + 3)}\n" for name in sorted(values))


def _python(value: Any, indent: int, used: int) -> str:
    """Render one value that starts in column `indent` + `used`; breaks lines that would be longer than `WIDTH`."""
    if isinstance(value, Ref):
        return repr(value.path)
    if isinstance(value, set):
        value = sorted(value)
    if isinstance(value, dict):
        named = all(isinstance(key, str) and key.isidentifier() for key in value)
        opening, closing = ("dict(", ")") if named else ("{", "}")
        keys = list(value)  # the order of data sets is part of a run
        heads = [f"{key}=" if named else f"{key!r}: " for key in keys]
        items = [value[key] for key in keys]
    elif isinstance(value, list | tuple):
        opening, closing = ("[", "]") if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
        heads, items = [""] * len(value), list(value)
    elif isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f"float({str(value)!r})"
    else:
        return repr(value)
    short = ", ".join(head + _python(item, 0, 0) for head, item in zip(heads, items, strict=True))
    if "\n" not in short and indent + used + len(opening) + len(short) + len(closing) <= WIDTH:
        return f"{opening}{short}{closing}"
    inner = indent + 4
    lines = [" " * inner + head + _python(item, inner, len(head)) for head, item in zip(heads, items, strict=True)]
    return f"{opening}\n" + ",\n".join(lines) + closing


def dump_yaml(spec: RunSpec) -> str:
    """Render a `RunSpec` as YAML, saying only what differs from the defaults; reads back equal."""
    from xtuner.config.yaml_text import render_yaml  # time that 0.1.x dumps need not pay

    return render_yaml(short_form(spec))


def short_form(spec: RunSpec) -> dict[str, Any]:
    """Return the settings of a `RunSpec` that differ from the defaults, choices and sources in their short spelling."""
    short = _short(spec)
    assert isinstance(short, dict)
    return short


def _short(value: Any) -> Any:
    if isinstance(value, Choice):
        if not value.options:
            return value.name
        return {"name": value.name, "options": dict(value.options)}
    if isinstance(value, BaseModel):
        said = {}
        for name, info in type(value).model_fields.items():
            item = getattr(value, name)
            if info.is_required() or item != info.get_default(call_default_factory=True):
                said[name] = int(item) if isinstance(item, float) and item.is_integer() else _short(item)
        if not said:
            # a part that is on, all as usual: say one setting rather than an empty {}
            first = next(iter(type(value).model_fields))
            return {first: _short(getattr(value, first))}
        return said["path"] if isinstance(value, SourceSpec) and set(said) == {"path"} else said
    if isinstance(value, list | tuple):
        items = [_short(item) for item in value]
        return items[0] if len(items) == 1 and isinstance(value[0], SourceSpec) else items
    return value
