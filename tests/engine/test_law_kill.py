"""The law of resuming: kill -9 whenever you like, the result is that of the run that was never stopped, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from xtuner.checkpoint.state import find_last, load_state

HERE = Path(__file__).parent
MODEL = HERE.parent / "golden" / "internlm2"
KILLS = 25
ROWS = [{"conversation": [{"input": f"What is {i}?", "output": f"{i} is a number. " * (i % 4 + 1)}]} for i in range(30)]


class Server:
    """Starts trainings, and knows how they ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_runs.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, spec: dict[str, Any], *, event: int | None = None, of: str = "", after: float | None = None) -> int:
        """Train; returns the exit status. `event` (of files named `of`...) and `after` (seconds) are moments to kill it
        at."""
        order = {"spec": spec, "log": str(self.log), **({} if event is None else {"event": event, "of": of})}
        self.process.stdin.write(f"{json.dumps(order)}\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if after is not None:
            time.sleep(after)
            with suppress(ProcessLookupError):  # it may have ended before
                os.kill(pid, signal.SIGKILL)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("kill")
    (folder / "data.json").write_text(json.dumps(ROWS))
    server = Server(folder)
    assert server.run(make_spec(folder, "whole")) == 0, server.log.read_text()
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=30)


def make_spec(folder: Path, name: str, **parts: Any) -> dict[str, Any]:
    """LoRA with dropout, steps of 3 iterations, checkpoints every 2: most lie inside a step."""
    journal = {"name": f"{HERE / 'fork_runs.py'}:Journal", "path": str(folder / f"{name}.journal")}
    return {
        "model": {"path": str(MODEL), "lora": {"r": 4, "dropout": 0.2}},
        "data": {
            "train": str(folder / "data.json"),
            "template": "internlm2_chat",
            "max_length": 64,
            "cache": str(folder / "cache"),
        },
        "loop": {"max_iters": 24, "accumulate": 3, "log_every": 4},
        "checkpoint": {"every": 2, "keep": 2},
        "optim": {"lr": 5e-3},
        "callbacks": [journal],
        "work_dir": str(folder / name),
        "resume": "auto",
        "seed": 3,
        **parts,
    }


def journal(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / f"{name}.journal").read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def trained(work_dir: Path) -> dict[str, torch.Tensor]:
    return load_state(find_last(work_dir))["state_dict"]


def assert_same_end(folder: Path, name: str) -> None:
    """Every iteration that any of the attempts did, and the weights at the end, are those of the whole run."""
    expected = {line["iteration"]: line for line in journal(folder, "whole")}
    lines = journal(folder, name)
    assert [line for line in lines if line != expected[line["iteration"]]] == []
    # a kill between saving at the end of a step and the journal's line leaves that line out for good
    assert set(expected) - {line["iteration"] for line in lines} <= {6, 12, 18, 24}
    found, wanted = trained(folder / name), trained(folder / "whole")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_killed_at_25_random_moments(server: Server) -> None:
    """Half of the moments are between two file operations, where saving is most delicate, half anywhere in time."""
    folder, draw = server.folder, random.Random(0)
    began = time.monotonic()
    assert server.run(make_spec(folder, "timed")) == 0
    lasts = time.monotonic() - began
    assert_same_end(folder, "timed")
    attempts = kills = saving = 0
    while kills < KILLS:
        name = f"killed_{attempts}"
        status = -1
        while status != 0:
            if kills == KILLS:
                moment = {}
            elif kills == 1:
                moment = {
                    "event": 2,
                    "of": ".iter_",
                }  # after it was opened: not yet in place
            elif kills % 2:
                moment = {"event": draw.randrange(1, 90)}
            else:
                moment = {"after": draw.uniform(0.2, 0.9) * lasts}
            status = server.run(make_spec(folder, name), **moment)
            assert status in (0, signal.SIGKILL), server.log.read_text()
            kills += status != 0
            saving += any((folder / name).glob(".iter_*.part"))
        assert_same_end(folder, name)
        assert not list((folder / name).glob(".*")), "what the killed left behind is gone"
        attempts += 1
    assert saving > 0, "one was killed while it wrote a checkpoint"


def test_old_checkpoints_go_only_when_the_new_one_is_whole(server: Server) -> None:
    """Whatever file operation of saving is the last one: what is there is whole, and the pointer names one of it."""
    folder = server.folder
    found: list[int] = []
    for event in range(42, 66, 2):  # each file operation of two times saving, or the one beside it
        spec = make_spec(folder, f"event_{event}", checkpoint={"every": 1, "keep": 2}, resume=None)
        assert server.run(spec, event=event) == signal.SIGKILL, server.log.read_text()
        work_dir = folder / f"event_{event}"
        files = list(work_dir.glob("*.pth"))
        assert all(load_state(file)["state_dict"] for file in files), event
        assert find_last(work_dir) in files, event
        found.append(len(files))
    assert set(found) == {2, 3}, "one more than is kept, between the new one and the end of the oldest"
