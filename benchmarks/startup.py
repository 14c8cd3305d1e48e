"""Start-up: seconds from `xtuner train` to its first iteration, by phase, when model and tokens have been used before.

    python benchmarks/startup.py OUT [--shape internlm2-1.8b | --model FOLDER] [--rows 7500] [key=value ...]

Makes a checkpoint of random weights and rows of text, then starts the same training three times, each in a process of
its own with three iterations: the first fills the caches, the later ones are measured. A line of JSON for each start
goes to OUT/startup.jsonl. Phases end with lines of the run's log: its first one (Python and the libraries are there),
the one that says that the model is being loaded (data and plan are ready), the one that counts what is trained (the
model is ready), the last of the answers that the model gives before it is trained, and the first iteration.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.workload import SHAPES  # noqa: E402

STARTS = 3
ITERATIONS = 3
LOG, LOADING, READY, ANSWER, ITERATION = " - xtuner - ", "Loading ", "trained weights", "Sample output", "Iter(train)"
SEVERAL_SECONDS = 300


def main(words: list[str] | None = None) -> int:
    """Read the words, start the runs, write and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="internlm2-1.8b")
    parser.add_argument("--model", type=Path, help="train this one instead of random weights")
    parser.add_argument("--rows", type=int, default=7500)
    parser.add_argument("--starts", type=int, default=STARTS)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the run")
    args = parser.parse_args(words)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, (args.out / "startup.jsonl").open("a", encoding="utf-8") as file:
        folder = args.model or make_model(args.shape, Path(place) / "model")
        data = write_rows(Path(place) / "rows.json", args.rows)
        for count in range(args.starts):
            row = {"case": f"start {count + 1} of {args.shape if args.model is None else folder.name}"}
            row |= start(folder, data, Path(place) / f"run{count}", args.settings)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(json.dumps(row), flush=True)
    return 0


def make_model(shape: str, folder: Path) -> Path:
    """Write random weights of a shape, and the tokenizer of the model that comes with xtuner."""
    import shutil

    from benchmarks.training import make
    from xtuner.apps.quickstart import built_in_model

    make(shape, folder)
    for file in folder.glob("*token*"):
        file.unlink()
    for file in built_in_model().glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def write_rows(file: Path, count: int) -> Path:
    """Write instructions and answers of about a hundred words."""
    dice = random.Random(0)
    words = ["the", "model", "answers", "a", "question", "about", "small", "rivers", "and", "large", "numbers"]

    def text(length: int) -> str:
        return " ".join(dice.choice(words) for _ in range(length))

    rows = [{"instruction": text(20), "input": "", "output": text(dice.randrange(20, 180))} for _ in range(count)]
    file.write_text(json.dumps(rows), "utf-8")
    return file


def start(model: Path, data: Path, work_dir: Path, settings: list[str]) -> dict[str, Any]:
    """Start a training and note when the lines of its log come."""
    words = [sys.executable, "-u", "-m", "xtuner", "train", "--model", str(model), "--data", str(data)]
    words += ["loop.log_every=1", f"loop.max_iters={ITERATIONS}", f"work_dir={work_dir}", "checkpoint.last=false"]
    words += settings
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    env |= {"HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", env=env
    )
    assert process.stdout is not None
    lines = [(time.perf_counter() - began, line.rstrip()) for line in process.stdout]
    if process.wait(SEVERAL_SECONDS):
        return {"failed": lines[-1][1] if lines else "it ended without words"}
    return phases(lines)


def phases(lines: list[tuple[float, str]]) -> dict[str, Any]:
    """Return the seconds of each phase from lines of a log with the moments at which they came."""
    first = {mark: next(moment for moment, line in lines if mark in line) for mark in (LOG, LOADING, READY, ITERATION)}
    iterations = [moment for moment, line in lines if ITERATION in line]
    answered = [moment for moment, line in lines if ANSWER in line and moment < iterations[0]]
    before = max([first[READY], *answered])
    return {
        "to_first_iteration": round(iterations[0], 1),
        "python_and_libraries": round(first[LOG], 1),
        "data_and_plan": round(first[LOADING] - first[LOG], 1),
        "model": round(first[READY] - first[LOADING], 1),
        "answers_before": round(before - first[READY], 1),
        "first_iteration": round(iterations[0] - before, 1),
        "later_iteration": round(iterations[-1] - iterations[-2], 2),
        "to_the_end": round(lines[-1][0], 1),
    }


if __name__ == "__main__":
    sys.exit(main())
