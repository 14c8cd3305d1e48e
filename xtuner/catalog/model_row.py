"""What a row of the models of the recipe book is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Model:
    """A row. `settings` are what its configs say whatever the recipe; see `page.Page`."""

    key: str
    """What names of its configs begin with."""
    path: str
    recipes: Mapping[str, str]
    """What names of its configs end with -> key of `RECIPES`."""
    template: str = "default"
    parallel: bool = False
    """Whether its configs speak of `sequence_parallel_size`."""
    settings: Mapping[str, Any] = field(default_factory=dict)


def row(
    key: str, path: str, recipes: str, template: str = "default", *, parallel: bool = False, **settings: Any
) -> Model:
    """Make a row; `recipes` are separated by blanks, each a key of `RECIPES` or `end_of_the_name=key`."""
    named = {word.partition("=")[0]: word.rpartition("=")[2] for word in recipes.split()}
    return Model(key, path, named, template, parallel, settings)
