"""The map functions of 0.1.x, for those of users that call one: `alpaca_map_fn(row)` is {"conversation": turns}."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from xtuner.config.ref import Ref
from xtuner.dataset import FORMATS
from xtuner.dataset.formats.turn import to_turns
from xtuner.dataset.row import BadRow

ENDING = "_map_fn"
OTHER = {"crime_kg_assitant": "crime_kg_assitan"}
"""Beginnings of names that are not those of the format."""


def __getattr__(name: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return the map function called `name`."""
    short = name.removesuffix(ENDING)
    short = OTHER.get(short, short)
    if not name.endswith(ENDING) or short not in FORMATS:
        raise AttributeError(name)
    return partial(convert, Ref(FORMATS[short]).resolve())


def convert(read: Callable[[Mapping[str, Any]], Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Read a row as 0.1.x did; one that cannot be used becomes an empty conversation, which is left out."""
    try:
        return {"conversation": to_turns(read(row))}
    except BadRow:
        return {"conversation": []}
