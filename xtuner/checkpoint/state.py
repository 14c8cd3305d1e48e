"""The checkpoint of a run: written so that it is never half there; read, of any version, so that no code comes out."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtuner.checkpoint.atomic import whole_file
from xtuner.checkpoint.dcp import is_dcp, load_dcp
from xtuner.checkpoint.path import no_checkpoint, strip_colon
from xtuner.checkpoint.pth import load_pth
from xtuner.checkpoint.pth_pickle import Foreign
from xtuner.checkpoint.weights import LazyWeights
from xtuner.checkpoint.zero import find_zero, load_zero
from xtuner.errors import UserError

POINTER = "last_checkpoint"
"""A text file in the work dir: the absolute path of the newest checkpoint, without a newline."""

WRAPPER = "module."
REFERENCE = "ref_llm."
COMPUTED = (".inv_freq",)

PLAIN = (str, int, float, bool, type(None), Tensor)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (dicts, lists, numbers, texts and tensors only) to `path`, whole or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written. What was at `path` before is intact.
    """
    _check_plain(state, "state")
    try:
        with whole_file(path, over_folder=True) as file:  # an earlier run of another strategy may have left one there
            torch.save(dict(state), file)
    except UserError as error:
        raise UserError(f"{error.what} Earlier checkpoints are intact.", error.fix) from error


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint of any version of XTuner: a `.pth` file, or a folder of DeepSpeed (ZeRO 1 to 3, any number of
    processes) or of `torch.distributed.checkpoint`.

    Nothing in it is run. Tensors of a file stay on the disk until they are touched; those of a folder are under
    `state_dict`, and put together each time they are asked for. Objects of classes that are not known here are
    `pth_pickle.Foreign`. A colon at the end of `path` is dropped (`strip_colon`).

    Raises:
        UserError: no such file, cut short, incomplete, not a checkpoint, or it asks for something to be run.
    """
    path = strip_colon(path)
    if not path.exists():
        raise no_checkpoint(path)
    if path.is_dir():
        if is_dcp(path):
            return load_dcp(path)
        zero = find_zero(path)
        if zero is None:
            raise UserError(f"{path} is a folder, not a checkpoint file.", "Give a file such as iter_500.pth.")
        return load_zero(zero)
    try:
        state = load_pth(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint, or it is cut short.", "Use an earlier checkpoint.") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(state).__name__}.")
    return state


def load_weights(path: Path) -> Mapping[str, Tensor]:
    """Read the weights of a checkpoint as `load_state` does, by the names they have in the model that was trained
    (`llm.base_model...`, `projector.model.0.weight`); take each once.

    `module.`, which wrappers put before all names, is dropped. So are what follows from the config (`inv_freq`) and
    the frozen copy of the model that 0.1.x saved beside a fully trained DPO model.

    Raises:
        UserError: as `load_state`; also a checkpoint without weights, or with something else in their place.
    """
    content = load_state(path)
    state = content.get("state_dict", content)
    if not isinstance(state, LazyWeights):
        _check_weights(path, state)
    wrapped = all(name.startswith(WRAPPER) for name in state)
    names = {name.removeprefix(WRAPPER) if wrapped else name: name for name in state}
    kept = {name: old for name, old in names.items() if not name.startswith(REFERENCE) and not name.endswith(COMPUTED)}
    if not kept:
        raise UserError(f"{path} holds no weights.", "Give a checkpoint such as iter_500.pth.")
    return LazyWeights({name: partial(state.__getitem__, old) for name, old in kept.items()})


def _check_weights(path: Path, state: Any) -> None:
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path} holds no state_dict of weights.", "Give a checkpoint such as iter_500.pth.")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = value.name if isinstance(value, Foreign) else type(value).__name__
            raise UserError(
                f"{path} holds no state_dict of weights: {name} is a {kind}.",
                "Give a checkpoint such as iter_500.pth.",
            )
        if value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise UserError(f"{path} says that {name} is larger than what is saved of it.", "Use another checkpoint.")


def write_pointer(work_dir: Path, checkpoint: Path) -> None:
    """Make `checkpoint` the newest one of `work_dir`."""
    with whole_file(work_dir / POINTER) as file:
        file.write(str(checkpoint.resolve()).encode())


def find_last(work_dir: Path) -> Path | None:
    """Return the newest checkpoint of a work dir, or None.

    That is the one in it whose name the pointer file has: a folder that was moved or copied has checkpoints of its own.
    Without it, the one with the highest number; without any, what the pointer names elsewhere.
    """
    named = _read_pointer(work_dir / POINTER)
    if named is not None and (work_dir / named.name).exists():
        return work_dir / named.name
    numbered = [
        (int(match[2]), match[1] == "iter", file)
        for file in work_dir.glob("*.pth")
        if (match := re.fullmatch(r"(iter|epoch)_(\d+)\.pth", file.name))
    ]
    if numbered:
        return max(numbered)[2]
    return named if named is not None and named.exists() else None


def _read_pointer(pointer: Path) -> Path | None:
    """Return what a pointer file says, or None if there is none, or no name in it."""
    if not pointer.is_file():
        return None
    text = pointer.read_bytes().decode("utf-8", errors="replace").replace("\0", "").strip()
    named = strip_colon(Path(text))
    return named if named.name else None


def _check_plain(value: Any, where: str) -> None:
    """Own invariant: nothing goes into a checkpoint that `weights_only` would refuse to read back."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            assert isinstance(key, str | int), f"{where} has a key of type {type(key).__name__}"
            _check_plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    else:
        assert isinstance(value, PLAIN), f"{where} is a {type(value).__name__}, not plain data"
