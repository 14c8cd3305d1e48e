"""Several processes on this machine, as torchrun would start them, and what their runs left behind."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
STEPS = 20
TEXTS = [
    {"conversation": [{"input": f"What is {i}?", "output": f"{i} is a number. " * (i % 4 + 1)}]} for i in range(44)
]
FSDP, DDP = {"name": "fsdp"}, {"name": "ddp"}
ULYSSES = {"name": "ddp", "options": {"sequence_parallel_size": 2}}
SHARDED_ULYSSES = {"name": "fsdp", "options": {"sequence_parallel_size": 2}}


def spec(folder: Path, name: str, *, lora: bool, batch: int, accumulate: int, **parts: Any) -> dict:
    """A run of STEPS steps, each of `batch` x `accumulate` rows a rank; what is logged is the loss of a step.

    The model is in `folder`/model, the rows are TEXTS in `folder`/data.json.
    """
    model = {
        "path": str(folder / "model"),
        "recompute": parts.pop("recompute", "none"),
        "quant": parts.pop("quant", None),
    }
    data = {"train": str(folder / "data.json"), "template": "internlm2_chat", "cache": str(folder / "cache")}
    return {
        "model": {**model, **({"lora": {"r": 4}} if lora else {})},
        "data": {**data, "max_length": 64, "pack": parts.pop("pack", False)},
        "loop": {
            "max_iters": STEPS * accumulate,
            "accumulate": accumulate,
            "batch_size": batch,
            "log_every": accumulate,
            "precision": parts.pop("precision", "float32"),
        },
        "optim": {"lr": 3e-3 if lora else 1e-3},
        "schedule": {"name": "constant", "warmup": 0},
        "checkpoint": {"every": parts.pop("every", 10) * accumulate, "keep": None},
        "work_dir": str(folder / name),
        **parts,
    }


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


def type_train(config: Path, *words: str, size: int = 2, **variables: str) -> subprocess.Popen:
    """Type `NPROC_PER_NODE=size xtuner train config words`."""
    return subprocess.Popen(
        [sys.executable, "-m", "xtuner", "train", str(config), *words],
        env={**os.environ, "NPROC_PER_NODE": str(size), "OMP_NUM_THREADS": "1", **variables},
        cwd=HERE.parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait(processes: list[subprocess.Popen], timeout: float = 600) -> list[tuple[int, str]]:
    """Return exit code and output of each; all are read at once, since one that is not read waits for its reader."""
    try:
        with ThreadPoolExecutor(len(processes)) as readers:
            said = list(readers.map(lambda process: process.communicate(timeout=timeout)[0], processes))
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


def per_step(work_dir: Path) -> torch.Tensor:
    """The losses of all optimiser steps, in float64."""
    return torch.tensor(list(losses(work_dir).values()), dtype=torch.float64)
