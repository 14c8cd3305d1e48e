"""A callback that is named by its file, and a run in a process of its own: the spec is argv[1] (JSON).

The process is killed at the moment in which the file argv[2] is renamed to what it is to be.
"""

import os
import signal
import sys

from xtuner.config.spec import RunSpec
from xtuner.engine.run import Callback, Run
from xtuner.engine.train import train


class Press(Callback):
    """Sends a signal, Ctrl-C if none is named, when an iteration is over."""

    def __init__(self, iteration: int, number: int = signal.SIGINT) -> None:
        self.iteration, self.number = iteration, number

    def after_iteration(self, run: Run) -> None:
        if run.iteration == self.iteration:
            os.kill(os.getpid(), self.number)


def kill_at(event: str, arguments: tuple) -> None:
    if event == "os.rename" and str(arguments[0]).endswith(f"/{sys.argv[2]}"):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.addaudithook(kill_at)
    train(RunSpec.model_validate_json(sys.argv[1]), name="killed")
