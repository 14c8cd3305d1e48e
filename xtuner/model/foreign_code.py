"""Program code that comes with a checkpoint: which files a person would trust, said before anything of them runs."""

from collections.abc import Callable

from xtuner.checkpoint.describe import foreign_code
from xtuner.model.checks import read_json
from xtuner.model.register import needs_remote_code


def announce_code(path: str, tell: Callable[[str], None]) -> None:
    """Say what is going to run because the user trusts `path` (folder or hub id), or that nothing has to.

    Raises:
        UserError: no such model, or damaged files.
    """
    if not needs_remote_code(read_json(path, "config.json").get("model_type")):
        tell(f"{path} is of a kind that is known here: none of its program code runs.")
        return
    files = name_code(path)
    if files:
        tell(f"Running program code that comes with {path}, and what it imports: {', '.join(files)}")


def name_code(path: str) -> list[str]:
    """Return the program files that the `auto_map`s of a checkpoint (folder or hub id) name, with their classes."""
    return foreign_code([read_json(path, name) for name in ("config.json", "tokenizer_config.json")])
