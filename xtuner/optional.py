"""The door to packages that are not always installed."""

import importlib
from types import ModuleType

from xtuner.errors import UserError

# package that is imported -> extra of ours that installs it
EXTRAS = {"deepspeed": "deepspeed"}


def need(module: str) -> ModuleType:
    """Import an optional package.

    Raises:
        UserError: the package is missing; says which extra installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(module.split(".")[0])
        install = f"xtuner[{extra}]" if extra else module
        raise UserError(
            f"This needs the package {module}, which is not installed.", f"Type: pip install '{install}'"
        ) from error
