"""Keeps another library's loader, which would run whatever a checkpoint says, to a list of classes."""

import os
import pkgutil
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError

from torch.serialization import safe_globals

from xtuner.errors import UserError

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""A switch of torch's: `torch.load` makes tensors, plain values and listed classes, whatever its caller asks for."""


@contextmanager
def only_data(path: Path, own: Sequence[str]) -> Iterator[None]:
    """In its block `torch.load` makes nothing but tensors, plain values and objects of the classes `own`.

    `own`: full names; one that the installed library does not have is left out. `path` is what is read, for the error.

    Raises:
        UserError: a file names something else, or is damaged.
    """
    known = []
    for name in own:
        with suppress(ImportError, AttributeError):
            known.append(pkgutil.resolve_name(name))
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        with safe_globals(known):
            yield
    except UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {asked[1]} to be called" if asked else "is damaged"
        raise UserError(f"{path} {what}; it is not read.", "Use another checkpoint.") from error
    finally:
        if before is None:
            del os.environ[FORCED]
        else:
            os.environ[FORCED] = before
