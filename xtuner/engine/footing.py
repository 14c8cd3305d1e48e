"""What a run stands on and a checkpoint does not hold: base model and data, recognised again when it is resumed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtuner.checkpoint.run_record import describe_base
from xtuner.dataset.pipeline import Prepared
from xtuner.errors import UserError
from xtuner.log import LOGGER

SAMPLES = 64
SAMPLE_BYTES = 4096
"""So much is read of a file of weights: spread over it, which another training of the same model does not survive."""


def describe_footing(path: str, data: Prepared) -> dict[str, Any]:
    """Describe base model (`path`: a folder or a hub id) and data, for a checkpoint."""
    base = {**describe_base(path), "weights": hash_weights(Path(path))}
    return {"base": base, "fingerprint": data.fingerprint, "sources": _hash_sources(data)}


def check_base(path: str, meta: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse to go on over another base model: an adapter fits the weights that it was trained on.

    Raises:
        UserError: its config.json, its revision or its weights are others.
    """
    before, now = meta.get("base", {}), {**describe_base(path), "weights": hash_weights(Path(path))}
    kinds = {"config_hash": "config.json", "weights": "the weights", "revision": "the revision"}
    known = [key for key in kinds if before.get(key) is not None and now.get(key) is not None]
    changed = [kinds[key] for key in known if before[key] != now[key]]
    if changed:
        raise UserError(
            f"The base model {path} changed since {checkpoint.name} was saved ({', '.join(changed)}).",
            "Put the model back that this run began with, or start anew from it.",
        )


def check_data(data: Prepared, meta: Mapping[str, Any], checkpoint: Path, *, accept: bool) -> None:
    """Refuse to go on with other data; `accept`: say what changed and go on.

    Raises:
        UserError: the rows, the template or the tokenizer changed; names the files.
    """
    if data.fingerprint == meta["fingerprint"]:
        return
    before, now = meta.get("sources", {}), _hash_sources(data)
    changed = [label for label in now if now[label] != before.get(label)]
    gone = [label for label in before if label not in now]
    named = f" ({', '.join(changed + gone)})" if before and (changed or gone) else ""
    what = f"The training data changed since {checkpoint.name} was saved{named}"
    if accept:
        LOGGER.warning("%s; the rest of the run learns from the data as it is now.", what)
        return
    raise UserError(
        f"{what}, so the run cannot go on as if it had not.",
        f"Put the data back, go on all the same with resume_changed_data=true, or start anew from the weights: "
        f"model.weights={checkpoint}",
    )


def hash_weights(folder: Path) -> str | None:
    """Hash names, sizes and samples of the files of weights in `folder`; None if it is none, or holds none."""
    files = sorted(file for file in folder.glob("*") if file.suffix in (".safetensors", ".bin") and file.is_file())
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            for sample in range(SAMPLES):
                content.seek(max(size - SAMPLE_BYTES, 0) * sample // (SAMPLES - 1))
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _hash_sources(data: Prepared) -> dict[str, str]:
    """Hash the samples of each source, by its label: their texts and their lengths in tokens."""
    found: dict[str, str] = {}
    for part in (data.train, data.validation):
        for store in part.stores if part is not None else []:
            label = str(store.about["label"])
            digest = hashlib.sha256(found.get(label, "").encode() + store.groups.tobytes())
            digest.update(store.lengths.tobytes())
            found[label] = digest.hexdigest()
    return found
