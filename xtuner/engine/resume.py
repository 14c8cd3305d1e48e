"""Saving a run and going on from where it was: nothing that happened before is different for having stopped.

The batches, the random numbers and the learning rate of an iteration are functions of the iteration; so a checkpoint
holds weights, optimiser and a number. Between two optimiser steps the weights are those of the last step
(`Run.border`), and a resume repeats the iterations since: their gradients come out the same, bit for bit.
"""

import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtuner.checkpoint.path import strip_colon
from xtuner.checkpoint.state import find_last
from xtuner.config.spec import RunSpec
from xtuner.engine.run import Run
from xtuner.engine.strategy.base import Strategy
from xtuner.engine.strategy.world import World
from xtuner.errors import UserError
from xtuner.log import LOGGER
from xtuner.version import __version__

FREE = {"data.cache", "model.attention", "model.recompute", "model.compile", "model.host_embedding"}
"""Settings of a fixed part that do not change what is computed."""

FIXED = ("model", "data", "objective", "optim.name", "loop.batch_size", "loop.precision")
"""Settings that a resumed run must share with the checkpoint: others may change and are named in the log."""

SILENT = (
    "resume",
    "resume_changed_data",
    "work_dir",
    "seed",
    "checkpoint",
    "probe",
    "callbacks",
    "loop.log_every",
    "loop.validate_every",
)
"""Settings whose change needs no word."""

AUTO = "auto"


def find_checkpoint(resume: str | None, work_dir: Path) -> Path | None:
    """Return the checkpoint that `resume` stands for, or None: begin at the beginning.

    Raises:
        UserError: it names a file that is not there.
    """
    if resume is None:
        return None
    if resume == AUTO:
        found = find_last(work_dir)
        if found is None:
            LOGGER.info("There is no checkpoint in %s yet, so training begins at the beginning.", work_dir)
        return found
    path = strip_colon(Path(resume))
    if not path.exists():
        last = find_last(work_dir)
        hint = f"The last one in the work dir is {last}." if last else f"There is none in {work_dir} either."
        raise UserError(f"There is no checkpoint {resume}.", hint)
    return path


def save_checkpoint(run: Run, path: Path, *, optimizer: bool = True) -> None:
    """Write `path`, make it the newest, then delete what `checkpoint.keep` no longer allows.

    Raises:
        UserError: nan or inf in a loss or weight, or the disk is full; earlier checkpoints are intact.
    """
    keep = run.spec.checkpoint.keep
    kept = [name for name in run.kept if name != path.name] + [path.name]
    old = kept[:-keep] if keep else []
    kept = kept[len(old) :]
    write_state(run, path, {"kept": kept}, optimizer=optimizer)
    run.work.point_to(path)
    run.kept = kept
    run.record.last_checkpoint = path.name
    run.work.write_record(run.record)
    for name in old:
        run.work.remove(name)
    LOGGER.info("Saved %s", path)


def write_state(run: Run, path: Path, further: Mapping[str, Any], *, optimizer: bool) -> None:
    """Write what a resume needs, and nothing else in the work dir; `further` is added to what it says of the run.

    Raises:
        UserError: nan or inf in a loss or weight, or the disk is full.
    """
    hub = {
        "log_scalars": run.metrics.state(run.border),
        "runtime_info": {"iter": run.iteration, "max_iters": run.num_iters, "seed": run.seed},
        "resumed_keys": {},
    }
    meta = {
        "iter": run.iteration,
        "epoch": run.iteration // run.order.iters_per_epoch,
        "border": run.border,
        "seed": run.seed,
        "cfg": run.work.config_text,
        "experiment_name": f"{run.name}_{run.work.timestamp}",
        "time": time.strftime("%Y%m%d_%H%M%S"),
        "xtuner_version": __version__,
        "spec": run.spec.model_dump(mode="json"),
        **run.footing,
        "spikes": run.spikes.state() if run.spikes is not None else None,
        "kept": run.kept,
        "rows_per_iter": run.spec.loop.batch_size * run.strategy.readers,
        "iters_per_epoch": run.order.iters_per_epoch,
        **further,
    }
    schedule = {**run.schedule.describe(), "last_step": run.border}
    run.strategy.save(path, {"meta": meta, "message_hub": hub, "param_schedulers": [schedule]}, optimizer=optimizer)


def read_meta(strategy: Strategy, path: Path) -> dict[str, Any]:
    """Read what a checkpoint says about its run.

    Raises:
        UserError: not a checkpoint, or not one of this version.
    """
    state = strategy.read(path)
    meta = state.get("meta")
    if not isinstance(meta, dict) or "border" not in meta:
        raise UserError(
            f"{path} was not written by this version of XTuner, so a run cannot go on from it.",
            f"Start anew from its weights: model.weights={path}",
        )
    return {**meta, "log_scalars": state["message_hub"]["log_scalars"]}


def check_same(path: Path | None, meta: Mapping[str, Any] | None, world: World) -> None:
    """Make sure that all processes go on from one checkpoint, or all from none.

    Raises:
        UserError: some found another one than others, as happens where they do not see the same disk.
    """
    mark = zlib.crc32(repr((path.name, sorted(meta.items()))).encode()) if path and meta else -1
    if world.agree(mark) == -world.agree(-mark):
        return
    places = [world.agree(meta["iter"] if meta else 0), -world.agree(-(meta["iter"] if meta else 0))]
    what = f"at iterations {places[1]} and {places[0]}" if places[0] != places[1] else "with different contents"
    raise UserError(
        f"The processes found different checkpoints to go on from, {what} (0: none).",
        "The work dir must be on a disk that all machines see; or name one checkpoint that is the same on all of them.",
    )


def check_spec(spec: RunSpec, meta: Mapping[str, Any], path: Path) -> None:
    """Compare what is asked for with what the checkpoint was trained with.

    Raises:
        UserError: something differs that the numbers so far depend on; names it.
    """
    before, now = _flat(meta["spec"]), _flat(spec.model_dump(mode="json"))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    fixed = [key for key in changed if _under(key, FIXED) and key not in FREE and not _same_path(before, now, key)]
    if fixed:
        said = "; ".join(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in fixed[:5])
        raise UserError(
            f"This is not the run that {path.name} belongs to ({said}).",
            f"Put the settings back, or start anew from the weights: model.weights={path}",
        )
    for key in changed:
        if not _under(key, (*FIXED, *SILENT)):
            LOGGER.info("Changed since the checkpoint: %s was %r, is %r.", key, before.get(key), now.get(key))


def restore(run: Run, path: Path, meta: Mapping[str, Any]) -> None:
    """Bring weights, optimiser, counters and the log's averages back to what the checkpoint holds."""
    run.strategy.load(path)
    run.strategy.world.agree(0)  # each reads its part: if one cannot, nobody begins, and calls the checkpoint intact
    run.iteration = run.border = same_place(run, path, meta)
    run.metrics.load_state(meta["log_scalars"])
    if run.spikes is not None and meta.get("spikes"):
        run.spikes.load_state(meta["spikes"])
    run.kept = [name for name in meta["kept"] if (run.work.folder / name).exists()]
    repeated = meta["iter"] - meta["border"]
    note = f" (repeating {repeated}, which lie between two optimiser steps)" if repeated else ""
    LOGGER.info("Resumed from %s: iteration %d of %d%s", path, run.iteration, run.num_iters, note)


def same_place(run: Run, path: Path, meta: Mapping[str, Any]) -> int:
    """Return the iteration at which this run has read as many rows as the checkpoint had, with as many ranks as it had.

    Raises:
        UserError: no iteration of this many ranks ends there.
    """
    rows, before = run.spec.loop.batch_size * run.strategy.readers, meta.get("rows_per_iter")
    if before is None or before == rows:
        return int(meta["border"])
    epoch, step = divmod(meta["border"], meta["iters_per_epoch"])
    if step * before % rows:
        raise UserError(
            f"{path.name} was saved after {step * before} rows of an epoch, and an iteration of this run reads {rows}.",
            f"Go on with as many processes as before: each iteration then read {before} rows.",
        )
    LOGGER.info("An iteration reads %d rows now, and read %d: it counts differently from here.", rows, before)
    return int(epoch * run.order.iters_per_epoch + step * before // rows)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Turn nested dicts into one of dotted keys."""
    if isinstance(value, Mapping) and value:
        return {
            key: item
            for part, inside in value.items()
            for key, item in _flat(inside, f"{name}.{part}" if name else str(part)).items()
        }
    return {name: value}


def _under(key: str, parts: tuple[str, ...]) -> bool:
    return any(key == part or key.startswith(f"{part}.") for part in parts)


def _same_path(before: Mapping[str, Any], now: Mapping[str, Any], key: str) -> bool:
    """Whether two texts are two ways to write one existing path."""
    one, other = before.get(key), now.get(key)
    if not (isinstance(one, str) and isinstance(other, str) and os.path.exists(one) and os.path.exists(other)):
        return False
    return os.path.samefile(one, other)
