"""Which names are in the recipe book."""

from functools import cache

from xtuner.catalog.deepspeed import ZERO
from xtuner.catalog.models import MODELS
from xtuner.catalog.script import SCRIPTS
from xtuner.errors import UserError, did_you_mean


@cache
def run_names() -> tuple[str, ...]:
    """Return the names of what can be trained, sorted."""
    return tuple(sorted(f"{model.key}_{end}" for model in MODELS for end in model.recipes))


@cache
def names() -> tuple[str, ...]:
    """Return every name that 0.1.x listed, sorted: runs, DeepSpeed configs, and scripts."""
    return tuple(sorted([*run_names(), *ZERO, *SCRIPTS]))


def check_name(name: str) -> str:
    """Return the name.

    Raises:
        UserError: it is not in the book; says the nearest.
    """
    if name not in names():
        hint = did_you_mean(name, names()) or "Type: xtuner list-cfg"
        raise UserError(f"There is no built-in config called {name}.", hint)
    return name
