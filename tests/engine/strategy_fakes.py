"""Several processes on this machine, as torchrun would start them, and what their runs left behind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: list[str], size: int = 2, **variables: str) -> list[subprocess.Popen]:
    """Start `command` as `size` ranks."""
    shared = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{HERE.parent.parent}:{HERE}",
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def wait(processes: list[subprocess.Popen], timeout: float = 120) -> list[tuple[int, str]]:
    """Return exit code and output of each."""
    try:
        said = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def run_cases(folder: Path, cases: dict[str, dict], size: int = 2) -> None:
    """Run specs in one group of processes."""
    file = folder / "cases.json"
    file.write_text(json.dumps(cases))
    for code, said in wait(start([str(HERE / "strategy_worker.py"), str(file)], size)):
        assert code == 0, said


def losses(work_dir: Path) -> dict[int, float]:
    """Iteration -> loss of the last run in a work dir."""
    path = sorted(work_dir.glob("*/vis_data/scalars.json"))[-1]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["iter"]: line["loss"] for line in lines if "loss" in line}
