"""A thread by which ranks notice that another one failed, died, or keeps them waiting, even while a card hangs."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

CAUSE = "cause"
"""Store key: why the run ends, as the JSON of a `Cause`; the first that is written counts."""
SIGN = "sign/{rank}"
"""Store key: "COUNT BEATS": how many meeting points the rank has reached, and a number that moves while it lives."""
FINISHED = "finished"
"""Value of a sign: the rank has left in good order."""
PERIOD = 1.0
"""Seconds between two signs."""
DEAD = 20.0
"""Seconds without a sign after which a rank counts as dead."""
GRACE = 5.0
"""Seconds in which the main thread may notice a failure itself, and end in good order."""
GONE, GONE_FIX = "The launcher of this run is gone.", "To go on from the last checkpoint, add --resume."


@dataclass
class Cause:
    """What stopped a rank, as a `UserError` says it."""

    rank: int
    what: str
    fix: str
    exit_code: int


class Neighbour:
    """What the signs of another rank say of it, and since when."""

    def __init__(self, now: float, limit: float) -> None:
        """`limit`: seconds that it may stay behind."""
        self.limit = limit
        self.sign = ""
        self.rest(now)

    def rest(self, now: float) -> None:
        """Begin to wait anew."""
        self.moved = self.level = now

    def look(self, sign: str, count: int, now: float) -> tuple[str, str] | None:
        """Take its last sign, and how many meeting points this rank has reached; returns what to blame it for.

        It keeps others waiting from the moment at which one of them is further. Until then it may take its time: where
        all load a model for an hour, the first that is done has waited for nobody yet.
        """
        if sign != self.sign:
            self.moved = now
        reached, before = (int(text.split()[0]) if text else -1 for text in (sign, self.sign))
        if reached != before or reached >= count or reached < 0:
            self.level = now
        self.sign = sign
        if now - self.moved > DEAD:
            return f"It gave no sign of life for {DEAD:.0f} seconds.", "The system's log may say why."
        if now - self.level > self.limit:
            return (
                f"It kept the others waiting for {self.limit / 60:g} minutes.",
                "If it needs so long, allow more: export XTUNER_TIMEOUT=MINUTES",
            )
        return None


class Watch(threading.Thread):
    """Gives signs of life, and watches those of the next rank; so all are watched, and the store has little to do."""

    def __init__(self, store: dist.Store, rank: int, size: int, limit: float) -> None:
        """`limit`: seconds that a rank may stay behind another one. `store`: of this thread alone."""
        super().__init__(name="watch", daemon=True)
        self.store, self.rank = store, rank
        self.next, self.neighbour = (rank + 1) % size, Neighbour(time.monotonic(), limit)
        self.count = 0
        """Meeting points that the main thread has reached."""
        self.last_words: Callable[[str], None] = lambda sentence: None
        """Called with the reason before the process ends."""
        self._over = threading.Event()

    def finish(self) -> None:
        """Stop watching and being watched."""
        self._over.set()
        self.join(GRACE)

    def run(self) -> None:
        """Until `finish`, or the end of the process."""
        neighbour = self.neighbour
        neighbour.rest(time.monotonic())
        beats, due = 0, time.monotonic()
        try:
            while not self._over.wait(PERIOD):
                now = time.monotonic()
                if now - due > DEAD / 2:  # this process itself stood still
                    neighbour.rest(now)
                due = now + PERIOD
                beats += 1
                self.store.set(SIGN.format(rank=self.rank), f"{self.count} {beats}")
                if self.store.check([CAUSE]):
                    self._end()
                    return
                key = SIGN.format(rank=self.next)
                sign = self.store.get(key).decode() if self.store.check([key]) else neighbour.sign
                if sign == FINISHED:
                    neighbour.rest(now)
                elif blame := neighbour.look(sign, self.count, now):
                    self._blame(*blame)
            self.store.set(SIGN.format(rank=self.rank), FINISHED)
        except dist.DistError:  # the store is gone: so is the launcher, and with it the run
            if not self._over.wait(GRACE):
                self._exit(f"{GONE} {GONE_FIX}", 1)

    def _blame(self, what: str, fix: str) -> None:
        self.store.compare_set(CAUSE, "", json.dumps(vars(Cause(self.next, what, fix, 1))))

    def _end(self) -> None:
        """Let the main thread notice; if it hangs, end the process for it."""
        cause = Cause(**json.loads(self.store.get(CAUSE)))
        if not self._over.wait(GRACE):
            self._exit(f"Rank {cause.rank} stopped: {cause.what} {cause.fix}".strip(), cause.exit_code)

    def _exit(self, sentence: str, code: int) -> None:
        self.last_words(sentence)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def silent_ranks(store: dist.Store, rank: int, size: int) -> list[int]:
    """Return the other ranks that give no sign during three periods."""

    def signs() -> dict[int, bytes]:
        keys = {other: SIGN.format(rank=other) for other in range(size) if other != rank}
        return {other: store.get(key) if store.check([key]) else b"" for other, key in keys.items()}

    before = signs()
    time.sleep(3 * PERIOD)
    after = signs()
    return [other for other, sign in after.items() if sign == before[other]]
