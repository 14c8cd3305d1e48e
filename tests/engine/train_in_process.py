"""A callback that is named by its file, and a run in a process of its own: the spec is argv[1] (JSON)."""

import os
import signal
import sys

from xtuner.config.spec import RunSpec
from xtuner.engine.run import Callback, Run
from xtuner.engine.train import train


class CtrlC(Callback):
    """Presses Ctrl-C when an iteration is over."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_iteration(self, run: Run) -> None:
        if run.iteration == self.iteration:
            os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    train(RunSpec.model_validate_json(sys.argv[1]), name="killed")
