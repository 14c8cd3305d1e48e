"""The work dir: the one place that knows its files and their names, which users' scripts rely on.

```
<work_dir>/
  <config copy>                     what was asked for, complete
  run.json                          what others need to know of the run
  iter_<N>.pth, epoch_<N>.pth       checkpoints; N counts from 1
  last_checkpoint                   the path of the newest one
  .lock                             while a training runs: which process it is
  adapter/                          the LoRA adapter, in PEFT's layout, after the run
  <YYYYmmdd_HHMMSS>/
    <YYYYmmdd_HHMMSS>.log
    vis_data/
      <YYYYmmdd_HHMMSS>.json        one line per log line (0.1.x wrote the same to both files)
      scalars.json
      config.py                     the config copy again (config.yaml for a YAML run)
      eval_outputs_iter_<N-1>.txt   answers at checkpoint N
```
"""

import json
import logging
import random
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from xtuner.checkpoint.atomic import ASIDE, discard, remove_leftovers, whole_file
from xtuner.checkpoint.folder import require_space, writing
from xtuner.checkpoint.run_record import RunRecord, write_run
from xtuner.checkpoint.state import write_pointer
from xtuner.engine.lock import Lock
from xtuner.engine.strategy.world import World
from xtuner.errors import UserError
from xtuner.log import LOGGER, add_log_file, close_log_file

PATIENCE = 5.0
"""Seconds in which a file that one machine made must be seen by the others."""


class WorkDir:
    """An open work dir of one training; `close` it."""

    def __init__(self, folder: Path, config_name: str, config_text: str) -> None:
        """Make the folders, the log file and the config copies.

        Raises:
            UserError: the folder cannot be written, its disk is full, or another training writes into it.
        """
        self.folder = folder
        self.config_name = config_name
        self.config_text = config_text
        if folder.exists() and not folder.is_dir():
            raise UserError(f"The work dir {folder} is a file.", "Choose another one with --work-dir.")
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = Lock(folder)
        try:
            self._open()
        except BaseException:
            self.lock.release()
            raise

    def _open(self) -> None:
        folder = self.folder
        with writing(folder):
            self.timestamp = _free_timestamp(folder)
            self.visual = folder / self.timestamp / "vis_data"
            self.visual.mkdir(parents=True)
            self.handler = add_log_file(self.log)
        if LOGGER.level == logging.NOTSET:  # called as a library: nobody set up a screen, the file wants all of it
            LOGGER.setLevel(logging.INFO)
        remove_leftovers(folder)
        for copy in (self.config, self.visual / f"config{self.config.suffix}"):
            with whole_file(copy) as file:
                file.write(self.config_text.encode())

    @property
    def log(self) -> Path:
        """The log file."""
        return self.folder / self.timestamp / f"{self.timestamp}.log"

    @property
    def config(self) -> Path:
        """The config copy."""
        return self.folder / self.config_name

    @property
    def adapter(self) -> Path:
        """Where the exported adapter goes."""
        return self.folder / "adapter"

    def checkpoint(self, number: int, *, by_epoch: bool = False) -> Path:
        """Name the checkpoint after iteration (or epoch) `number`, counted from 1."""
        return self.folder / f"{'epoch' if by_epoch else 'iter'}_{number}.pth"

    def note(self, text: str) -> None:
        """Write a line to the log file alone."""
        self.handler.handle(LOGGER.makeRecord(LOGGER.name, logging.INFO, "", 0, text, (), None))

    def write_scalars(self, scalars: Mapping[str, float]) -> None:
        """Add a line to both json-lines files."""
        line = f"{json.dumps(dict(scalars))}\n"
        for name in (f"{self.timestamp}.json", "scalars.json"):
            with writing(self.visual / name), open(self.visual / name, "a", encoding="utf-8") as file:
                file.write(line)

    def write_answers(self, iteration: int, answers: list[str]) -> None:
        """Save the answers at the checkpoint of `iteration` (counted from 1; the file name counts from 0)."""
        with whole_file(self.visual / f"eval_outputs_iter_{iteration - 1}.txt") as file:
            for number, answer in enumerate(answers, 1):
                file.write(f"Eval output {number}:\n{answer}\n\n".encode())

    def write_record(self, record: RunRecord) -> None:
        """Write run.json."""
        write_run(self.folder, record)

    def point_to(self, checkpoint: Path) -> None:
        """Make `checkpoint` the newest one."""
        write_pointer(self.folder, checkpoint)

    def remove(self, name: str) -> None:
        """Delete a checkpoint, if it is there; a folder out of sight, so that none is seen of which parts are gone."""
        path = self.folder / name
        if path.is_dir():
            discard(aside := path.with_name(f".{name}{ASIDE}"))
            path = path.rename(aside)
        discard(path)

    def require_space(self, num_bytes: int) -> None:
        """Refuse to start a run whose checkpoint will not fit.

        Raises:
            UserError: less than `num_bytes` are free.
        """
        require_space(self.folder, num_bytes)

    def close(self) -> None:
        """Close the log file and let others train here."""
        close_log_file(self.handler)
        self.lock.release()


def check_common(folder: Path, world: World) -> None:
    """Make sure that all ranks write into one folder, where each of them writes a part of every checkpoint.

    Raises:
        UserError: a rank has another one, as happens on machines without a common disk.
    """
    token = world.agree(random.SystemRandom().randrange(1, 2**62) if world.rank == 0 else 0)
    mark = folder / f".{token}{ASIDE}"

    def leave() -> None:
        with writing(folder):
            mark.touch()

    world.first(leave)
    end = time.monotonic() + PATIENCE
    while not (seen := mark.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    blind = world.agree(0 if seen else world.rank)
    if world.rank == 0:
        mark.unlink(missing_ok=True)
    if blind:
        raise UserError(
            f"Rank {blind} does not see the work dir of rank 0, and each of them writes a part of every checkpoint.",
            "Name a folder on a disk that all machines see, the same on all of them, or train with --strategy ddp.",
        )


class Bystander(WorkDir):
    """The work dir as ranks other than 0 have it: they know its names, and rank 0 writes."""

    def __init__(self, folder: Path, config_name: str, config_text: str) -> None:
        self.folder, self.config_name, self.config_text = folder, config_name, config_text
        self.timestamp = ""
        self.visual = folder

    def note(self, text: str) -> None:
        """Not here."""

    def write_scalars(self, scalars: Mapping[str, float]) -> None:
        """Not here."""

    def write_answers(self, iteration: int, answers: list[str]) -> None:
        """Not here."""

    def write_record(self, record: RunRecord) -> None:
        """Not here."""

    def point_to(self, checkpoint: Path) -> None:
        """Not here."""

    def remove(self, name: str) -> None:
        """Not here."""

    def require_space(self, num_bytes: int) -> None:
        """Rank 0 asks."""

    def close(self) -> None:
        """Nothing is open."""


def _free_timestamp(folder: Path) -> str:
    """Return the current second, or the next one that no earlier run has used."""
    moment = datetime.now()
    while (folder / (name := moment.strftime("%Y%m%d_%H%M%S"))).exists():
        moment += timedelta(seconds=1)
    return name
