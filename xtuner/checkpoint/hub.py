"""Where the files of a model are: a folder that was given, or a copy of a hub's that is fetched when needed."""

from pathlib import Path

from xtuner.errors import UserError
from xtuner.network import hub_is_reachable

SMALL = ["*.json", "*.model", "*.txt", "*.py", "*.jinja", "*.tiktoken", "*.vocab", "*.bpe", "LICENSE*", "NOTICE*"]
WEIGHTS = (["*.safetensors"], ["*.bin"])
"""Tried in this order: whoever has safetensors needs nothing else."""


def find_folder(path: Path | str, *, weights: bool) -> Path:
    """Return the folder of a model: `path` itself, or the local copy of the hub id `path`; `weights`: with weights.

    Raises:
        UserError: no such folder, and no such model can be reached.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    text = str(path)
    if folder.exists() or text.count("/") > 1 or text.startswith((".", "/", "~")):
        raise UserError(f"There is no model folder {path}.", "Check the path of the model.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = not hub_is_reachable()
    try:
        found = Path(snapshot_download(text, allow_patterns=SMALL, local_files_only=offline))
        for patterns in WEIGHTS if weights else ():
            found = Path(snapshot_download(text, allow_patterns=patterns, local_files_only=offline))
            if any(found.glob(patterns[0])):
                break
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"{path} is neither a folder here nor a model that can be reached on the hub.",
            "Check the spelling and the network, or download the model and give its folder.",
        ) from error
    return found
