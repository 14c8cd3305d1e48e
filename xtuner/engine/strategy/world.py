"""The processes of a run: which one this is, what they tell one another, and how they begin and end together."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from xtuner.engine.interrupt import at_once
from xtuner.engine.strategy.watch import CAUSE, GONE, GONE_FIX, Cause, Watch, silent_ranks
from xtuner.errors import UserError

T = TypeVar("T")

MINUTES = "XTUNER_TIMEOUT", 30.0
"""How long a rank may keep the others waiting: the variable that says it, and what holds without it."""
DATA_MINUTES = "XTUNER_DATASET_TIMEOUT", 60.0
"""How long preparing the data may take (the variable and the hour are those of 0.1.x)."""
JOINING = 5.0
"""Minutes that starting may take in any case, however short the others are: nobody hangs who still loads programs."""
YEAR = 525_600.0
"""Minutes: more than this is no time limit."""
MOMENT = 5.0
"""Seconds in which the cause of a broken connection becomes known."""
BROKEN = ("gloo", "nccl", "connection", "socket", "timed out", "broken pipe")
"""Words in the errors of a collective whose other side is gone."""


class PeerFailed(UserError):
    """Another rank failed, and this one ends for it."""


class World:
    """One process alone; `Processes` is several. All methods are called by all ranks, at the same place."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def agree(self, number: int) -> int:
        """Return the largest of the numbers that the ranks give, so that all do the same next."""
        return number

    def total(self, count: int) -> int:
        """Sum a number over all ranks."""
        return count

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum numbers over all ranks, each by itself."""
        return list(values)

    def first(self, action: Callable[[], None]) -> None:
        """Let rank 0 do what is done once; the others wait for its end.

        Raises:
            UserError: on all ranks what went wrong on rank 0.
        """
        action()

    def once_a_machine(self, name: str, action: Callable[[], T]) -> T:
        """Do what leaves its result on the disk: first one process of each machine, then the others, which find it.

        Raises:
            UserError: it took longer than XTUNER_DATASET_TIMEOUT (minutes, 60 when it is not set).
        """
        return action()

    def is_broken(self, error: BaseException) -> bool:
        """Whether an exception says that the connection to another rank is gone."""
        return False

    def explain(self, error: BaseException) -> UserError:
        """Turn a broken connection into the name of the rank that broke it, and its reason."""
        raise AssertionError("one process has no peers")

    def on_loss(self, last_words: Callable[[str], None]) -> None:
        """Call `last_words` when this process must end while its main thread hangs."""

    def messages(self) -> dist.ProcessGroup | None:
        """Return the group through which the hosts talk, or None: the default one."""
        return None

    def group(self) -> None:
        """Make a process group of one, for libraries that need some."""
        if not dist.is_initialized():
            dist.init_process_group(_backend(), store=dist.HashStore(), rank=0, world_size=1)

    def close(self, error: BaseException | None) -> None:
        """End; what stopped this rank becomes known to the others."""
        if dist.is_initialized():
            dist.destroy_process_group()


@dataclass
class Place:
    """Who this process is, from the variables that torchrun and `xtuner train` set."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    machine: int

    @classmethod
    def read(cls) -> "Place":
        """Read the environment."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        return cls(*(int(os.environ.get(name, "1" if name.endswith("SIZE") else "0")) for name in names))


class Processes(World):
    """Several processes. What they tell one another travels over gloo, so that no card ever waits for it."""

    def __init__(self, place: Place) -> None:
        """Join the others.

        Raises:
            UserError: there are more processes than cards, a time limit is none, or the others do not come.
        """
        limit, self.data_minutes = timedelta(minutes=read_minutes(*MINUTES)), read_minutes(*DATA_MINUTES)
        self.rank, self.size = place.rank, place.size
        self.local_rank, self.local_size, self.machine = place.local_rank, place.local_size, place.machine
        if torch.cuda.is_available():
            if self.local_size > torch.cuda.device_count():  # all know it, and the first of them speaks
                raise UserError(
                    f"{self.local_size} processes were started on this machine, which has "
                    f"{torch.cuda.device_count()} cards.",
                    f"Type: NPROC_PER_NODE={torch.cuda.device_count()} xtuner train ...",
                )
            torch.cuda.set_device(self.local_rank)
        joining = max(limit, timedelta(minutes=JOINING))
        try:
            with at_once():
                base, _, _ = next(dist.rendezvous("env://", timeout=joining))
                # the watch speaks first when a rank does not come; gloo's and NCCL's own limits are the last resort
                later = joining + timedelta(minutes=1)
                dist.init_process_group(_backend(), store=base, rank=self.rank, world_size=self.size, timeout=later)
                group = dist.new_group(backend="gloo", timeout=later)
            assert isinstance(group, dist.ProcessGroup)
            self.control = group
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"The {self.size} processes of this run did not find one another ({_first_line(error)}).",
                "Look at ADDR and PORT; they must be the same on all machines, and NODE_RANK different.",
            ) from error
        self.turns = 0
        self.store = dist.PrefixStore("xtuner", base)
        self.watch = Watch(dist.PrefixStore("xtuner", base.clone()), self.rank, self.size, limit.total_seconds())
        self.watch.start()

    def agree(self, number: int) -> int:
        """Largest number, by one small message."""
        return int(self._reduce([number], torch.int64, dist.ReduceOp.MAX)[0])

    def total(self, count: int) -> int:
        """Sum, by one small message."""
        return int(self._reduce([count], torch.int64, dist.ReduceOp.SUM)[0])

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum in double precision."""
        return [float(value) for value in self._reduce(values, torch.float64, dist.ReduceOp.SUM)]

    def _reduce(self, values: Sequence[float], dtype: torch.dtype, how: Any) -> list[Any]:
        self.watch.count += 1
        numbers = torch.tensor(values, dtype=dtype)
        dist.all_reduce(numbers, how, group=self.control)
        found: list[Any] = numbers.tolist()
        return found

    def first(self, action: Callable[[], None]) -> None:
        """Act on rank 0, then agree whether it went well."""
        failed: UserError | None = None
        if self.rank == 0:
            try:
                action()
            except UserError as error:
                failed = error
                self.publish(error)
        if self.agree(failed is not None):
            raise failed or self._peer_failed()

    def once_a_machine(self, name: str, action: Callable[[], T]) -> T:
        """The process with local rank 0 goes first; the store says when it is done."""
        self.turns += 1
        key = f"{name}/{self.machine}/{self.turns}"
        if self.local_rank == 0:
            result = action()
            self.store.set(key, "done")
            return result
        end = time.monotonic() + 60 * self.data_minutes
        while not self.store.check([key]):
            if self.store.check([CAUSE]):
                raise self._peer_failed()
            if time.monotonic() > end:
                raise UserError(
                    f"Preparing the {name} took longer than {self.data_minutes:g} minutes on this machine.",
                    "Prepare it first with one process, or allow more: export XTUNER_DATASET_TIMEOUT=MINUTES",
                )
            time.sleep(0.1)
        return action()

    def is_broken(self, error: BaseException) -> bool:
        """Collectives raise RuntimeErrors that name the transport."""
        said = str(error).lower()
        return isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and any(word in said for word in BROKEN)
        )

    def explain(self, error: BaseException) -> UserError:
        """Ask the store for the cause; without one, see who gives no sign of life. The store ends with the launcher."""
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends all now, and the reason is yet to be said
        end = time.monotonic() + MOMENT
        try:
            while time.monotonic() < end:
                if self.store.check([CAUSE]):
                    return self._peer_failed()
                time.sleep(0.1)
            silent = silent_ranks(self.store, self.rank, self.size)
        except dist.DistError:
            return PeerFailed(GONE, GONE_FIX)
        who = f"Rank {', '.join(map(str, silent))}" if silent else "Another rank"
        return PeerFailed(
            f"{who} is gone ({_first_line(error)}).",
            "It was killed, perhaps because the host's memory ran out; the system's log knows.",
        )

    def _peer_failed(self) -> PeerFailed:
        cause = Cause(**json.loads(self.store.get(CAUSE)))
        return PeerFailed(f"Rank {cause.rank} stopped: {cause.what}", cause.fix, cause.exit_code)

    def publish(self, error: BaseException) -> None:
        """Let the others know what stopped this rank; the first cause counts."""
        if isinstance(error, UserError):
            cause = Cause(self.rank, error.what, error.fix, error.exit_code)
        else:
            cause = Cause(self.rank, f"{type(error).__name__}: {_first_line(error)}", "XTUNER_DEBUG=1 shows where.", 1)
        with suppress(dist.DistError):  # the store is gone, and must not hide what happened
            self.store.compare_set(CAUSE, "", json.dumps(vars(cause)))

    def on_loss(self, last_words: Callable[[str], None]) -> None:
        """The watch calls them."""
        self.watch.last_words = last_words

    def messages(self) -> dist.ProcessGroup | None:
        """Gloo."""
        return self.control

    def group(self) -> None:
        """There is one."""

    def close(self, error: BaseException | None) -> None:
        """Leave; after a failure without waiting for anybody."""
        if error is None:
            self.watch.finish()
            dist.destroy_process_group()
            return
        if not isinstance(error, PeerFailed):
            self.publish(error)
        get_error_handler().record_exception(error)  # for the summary that torchrun prints
        self.watch.finish()


def read_minutes(name: str, default: float) -> float:
    """Read a time limit from the environment.

    Raises:
        UserError: it is no number above 0 (exit code 2).
    """
    text = os.environ.get(name, "").strip()
    with suppress(ValueError):
        if 0 < (minutes := float(text or default)) <= YEAR:
            return minutes
    raise UserError(f"{name} is {text}, not a number of minutes.", f"Type: export {name}={default:g}", exit_code=2)


@contextmanager
def open_world() -> Iterator[World]:
    """Join the processes that this one was started with, and leave them at the end, however it comes."""
    place = Place.read()
    world = Processes(place) if place.size > 1 else World()
    try:
        yield world
    except BaseException as error:
        if world.is_broken(error):
            peer = world.explain(error)
            world.close(peer)
            raise peer from error
        world.close(error)
        raise
    world.close(None)


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _first_line(error: BaseException) -> str:
    """Return what an error says, without gloo's place in its source and its advice."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[\S+:\d+\] |\. This is typically caused by .*", "", said).rstrip(".")
