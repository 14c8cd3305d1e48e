"""Where the files of a model are: a folder that was given, or a copy of a hub's that is fetched when needed."""

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from xtuner.errors import UserError
from xtuner.network import hub_is_reachable

SMALL = ["*.json", "*.model", "*.txt", "*.py", "*.jinja", "*.tiktoken", "*.vocab", "*.bpe", "LICENSE*", "NOTICE*"]
WEIGHTS = (["*.safetensors"], ["*.bin"])
"""Tried in this order: whoever has safetensors needs nothing else."""
NEVER = ["*/*.safetensors", "*/*.bin", "consolidated*"]
"""The same weights again, in layouts of other programs."""


class DownloadBar(tqdm):
    """The bytes of a download, on terminals alone, gone when all are here.

    The library makes several bars of the class it is given: of files, of bytes on their way, of bytes that are here.
    The last kind is shown. This is not the library's own class, because the switch of that one, which
    `log.quiet_libraries` turns, is for all bars of the library.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        hidden = options.get("unit") != "B" or options.get("desc") == "Downloading bytes" or not sys.stderr.isatty()
        options.pop("bar_format", None)
        super().__init__(*args, **{**options, "desc": "Downloading", "disable": hidden, "leave": False, "delay": 0.5})

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Take the library's last word as the end; otherwise keep to ours."""
        if desc is not None and desc.endswith(" complete"):
            self.close()


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
        found = Path(snapshot_download(text, allow_patterns=SMALL, local_files_only=offline, tqdm_class=DownloadBar))
        for patterns in WEIGHTS if weights else ():
            found = Path(
                snapshot_download(
                    text,
                    allow_patterns=patterns,
                    ignore_patterns=NEVER,
                    local_files_only=offline,
                    tqdm_class=DownloadBar,
                )
            )
            if any(found.glob(patterns[0])):
                break
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"{path} is neither a folder here nor a model that can be reached on the hub.",
            "Check the spelling and the network, or download the model and give its folder.",
        ) from error
    return found
