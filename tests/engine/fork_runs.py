"""Trainings in processes of their own without the cost of importing anything again: each is a fork of this program.

The first of them runs in this program itself, which imports what a training needs. One line of JSON on stdin per
training: `spec`, `log` (its output), and maybe `event`: kill -9 at the moment of that file operation in the work dir,
counting those on files whose names begin with `of`.
One line on stdout when it has begun (its process number), one when it is over (its status).
"""

import json
import os
import signal
import sys
import traceback

import torch

from xtuner.config.spec import RunSpec
from xtuner.engine.run import Callback, Run
from xtuner.engine.train import train

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.truncate")


class Journal(Callback):
    """Writes a line per iteration: what was read, what came out, and how far the weights moved."""

    def __init__(self, path: str) -> None:
        self.path = path

    def after_iteration(self, run: Run) -> None:
        last = run.metrics.entries[-1]
        line = {"iteration": run.iteration, "rows": last.rows, "lr": run.schedule.lr(run.iteration - 1), **last.sums}
        with open(self.path, "a") as file:
            file.write(f"{json.dumps(line)}\n")


def kill_at(event: int, folder: str, of: str) -> None:
    """End this process, as the system would, before the `event`-th file operation in a folder on a name like `of`."""
    left = event

    def count(name: str, arguments: tuple) -> None:
        nonlocal left
        path = str(arguments[0]) if name in FILE_EVENTS else ""
        if path.startswith(folder) and os.path.basename(path).startswith(of):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def child(order: dict) -> int:
    file = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    spec = RunSpec.model_validate(order["spec"])
    if "event" in order:
        kill_at(order["event"], spec.work_dir, order["of"])
    try:
        train(spec, name="forked")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for number, line in enumerate(sys.stdin):
        pid = os.fork() if number else os.getpid()
        if pid == 0:
            os._exit(child(json.loads(line)))
        print(pid, file=answers, flush=True)
        status = os.waitpid(pid, 0)[1] if number else child(json.loads(line))
        print(status, file=answers, flush=True)
