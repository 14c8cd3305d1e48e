"""How this program is called from here, for the commands that it tells people to type."""

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "xtuner"


def program() -> str:
    """Return `xtuner` where the shell finds this very installation under that name, else a way that works.

    Someone who ran `make quickstart` has not activated `.venv`: for them it is `.venv/bin/xtuner`, relative to the
    current folder where that is shorter. Without an installed script it is `python -m xtuner`.
    """
    beside = shutil.which(NAME, path=str(Path(sys.executable).parent))  # adds .exe where that is the custom
    typed = Path(sys.argv[0])
    script = typed if typed.stem == NAME and typed.is_file() else Path(beside) if beside else None
    found = shutil.which(NAME)
    if script is None:
        return NAME if found else "python -m xtuner"
    if found and Path(found).resolve() == script.resolve():
        return NAME
    return shlex.quote(min(os.path.relpath(script), str(script.absolute()), key=len))
