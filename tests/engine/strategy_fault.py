"""A callback that is named by its file: rank 1 fails in one of several ways."""

import os
import signal
import time

from xtuner.engine.run import Callback, Run
from xtuner.errors import UserError


class Fault(Callback):
    """After iteration 3."""

    def __init__(self, what: str) -> None:
        self.what = what

    def after_iteration(self, run: Run) -> None:
        if run.iteration != 3:
            return
        if self.what == "hang":
            neighbour = run.strategy.world.watch.neighbour
            assert neighbour.limit == 120  # what the start may take on a busy machine
            neighbour.limit = 6.0
        if run.strategy.world.rank != 1:
            return
        if self.what == "raise":
            raise UserError("The second rank has had enough.", "Let it rest.", 3)
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
