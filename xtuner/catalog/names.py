"""Which names are in the recipe book."""

from functools import cache

from xtuner.catalog.models import MODELS
from xtuner.errors import UserError, did_you_mean


@cache
def names() -> tuple[str, ...]:
    """Return every name, sorted."""
    return tuple(sorted(f"{model.key}_{recipe}" for model in MODELS for recipe in model.recipes))


def check_name(name: str) -> str:
    """Return the name.

    Raises:
        UserError: it is not in the book; says the nearest.
    """
    if name not in names():
        hint = did_you_mean(name, names()) or "Type: xtuner list-cfg"
        raise UserError(f"There is no built-in config called {name}.", hint)
    return name
