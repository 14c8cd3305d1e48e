"""`run.json`: what a work dir is the work of, so that chat, merge and publish need no other argument."""

import dataclasses
import hashlib
import json
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xtuner.checkpoint.atomic import whole_file
from xtuner.errors import UserError
from xtuner.version import __version__

FILE = "run.json"

STATUSES = ("running", "stopped", "failed", "finished")


@dataclass
class RunRecord:
    """One run, as others need to know it; paths inside the work dir are relative to it."""

    spec: dict[str, Any]
    """The `RunSpec`, as plain data."""
    template: str | dict[str, Any] | None = None
    """The chat template that was trained: the name of a built-in one, or all fields of another; None: plain text."""
    base: dict[str, Any] = field(default_factory=dict)
    """`path` of the model (absolute when it is a folder), `config_hash` of its config.json, `revision` of a hub's."""
    data: dict[str, Any] = field(default_factory=dict)
    """`fingerprint` and `report` of the prepared data."""
    versions: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    """What was measured before training: `fp8`, what rounding the weights costs on the first batch."""
    config: str | None = None
    """File name of the config copy."""
    adapter: str | None = None
    """Folder of the exported adapter."""
    last_checkpoint: str | None = None
    """File name of the newest checkpoint."""
    status: str = "running"
    """One of STATUSES."""


def nothing_saved(folder: Path) -> UserError:
    """Make the error of a run that has no checkpoint: it may go on, or have ended too early."""
    if read_run(folder).status == "running":
        return UserError(f"The run {folder} has saved nothing yet.", "Wait for its first checkpoint.")
    return UserError(
        f"The run {folder} ended before it saved anything.", "The end of its log says why; then train again."
    )


def write_run(folder: Path, record: RunRecord) -> None:
    """Write `record` into `folder`, whole or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    assert record.status in STATUSES
    text = json.dumps(dataclasses.asdict(record), ensure_ascii=False, indent=2)
    with whole_file(folder / FILE) as file:
        file.write(f"{text}\n".encode())


def read_run(folder: Path) -> RunRecord:
    """Read the record of a run folder (or a run.json itself). Keys of later versions are left out.

    Raises:
        UserError: no run.json there, or it is not one.
    """
    file = folder if folder.name == FILE else folder / FILE
    if not file.is_file():
        raise UserError(f"{folder} is not the folder of a run: it has no {FILE}.", "Give the work dir of a training.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = {entry.name for entry in dataclasses.fields(RunRecord)}
        return RunRecord(**{key: value for key, value in content.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not the record of a run: {error}.") from error


def is_run_folder(path: Path) -> bool:
    """Say whether `path` is a work dir with a record."""
    return (path / FILE).is_file()


def describe_base(path: str) -> dict[str, Any]:
    """Say which model a run began with: where it is and what its config.json hashes to (sha256).

    Of a hub's model that was fetched also the `revision` (commit), since a hub's models change.
    """
    folder = Path(path)
    if folder.is_dir():
        return {"path": str(folder.resolve()), "config_hash": _hash(folder / "config.json")}
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, "config.json")
    except HFValidationError:
        found = None  # no folder and no hub id
    if not isinstance(found, str):
        return {"path": path, "config_hash": None, "revision": None}
    return {"path": path, "config_hash": _hash(Path(found)), "revision": Path(found).parent.name}


def _hash(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def installed_versions() -> dict[str, str]:
    """Versions of what decides the numbers of a run."""
    found = {"xtuner": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "bitsandbytes"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found
