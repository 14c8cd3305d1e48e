"""Training speed on several cards, as people start it: `xtuner train` with NPROC_PER_NODE.

    python benchmarks/scaling.py --out FOLDER [--only WORD ...] [--minutes 8] [--cards N]

Every case is a run of its own on its own cards, so that one that fails leaves the others alone; cases that together
need no more cards than there are run side by side. Models have random weights in the shapes of `workload.SHAPES`, rows
are random tokens of one length, `batch x length` of them per card and iteration, every iteration an optimiser step;
layers are compiled. What counts is the median time of the iterations after the first four. A case is written
METHOD:SHAPE:SIZE:CARDSxSTRATEGY, with :resume behind it if it is to save, stop and go on. `ulysses` spreads each row
over all cards. FOLDER/scaling.jsonl gets a line per case, FOLDER/CASE.log what the run said; a table comes at the end.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.workload import RANK, TRAINED_WHOLE, VOCABULARY, longest_row, num_rows  # noqa: E402
from xtuner.apps.quickstart import built_in_model  # noqa: E402

LORA, FULL = "lora:llama3-8b:2x4096", "full:internlm2-1.8b:4x4096"
CASES = [
    f"{LORA}:1xsingle",
    f"{FULL}:1xsingle",
    f"{LORA}:2xddp",
    f"{LORA}:4xddp:resume",
    f"{FULL}:4xfsdp:resume",
    f"{LORA}:4xfsdp",
    f"{FULL}:4xddp",
    "lora:llama3-8b:1x131072:4xulysses",
    f"{FULL}:4xdeepspeed_zero2",
    f"{LORA}:4xdeepspeed_zero3",
    f"{FULL}:2xddp",
    f"{FULL}:2xfsdp",
    f"{FULL}:4xdeepspeed_zero3",
    f"{LORA}:4xdeepspeed_zero2",
    f"{LORA}:2xfsdp",
    f"{FULL}:2xdeepspeed_zero2",
    f"{LORA}:2xdeepspeed_zero3",
    f"{FULL}:2xdeepspeed_zero3",
    f"{LORA}:2xdeepspeed_zero2",
]
"""The most important first: when the minutes are over, the last are left out."""
STEPS, WARM = 12, 4
SAVED_AT, MORE = 8, 2
"""Where a run that goes on was saved, and how many iterations it does then."""
LONG = 2**15
"""A row of so many tokens is trained with recomputation."""
LIMIT = 150.0
"""Seconds that a case may take."""
POLITE = 8.0
"""Seconds between asking a run to stop and ending it."""


@dataclass(frozen=True)
class Case:
    """METHOD:SHAPE:SIZE:CARDSxSTRATEGY[:resume]."""

    text: str
    method: str
    shape: str
    size: str
    cards: int
    strategy: str
    resume: bool

    @property
    def tokens(self) -> int:
        """Tokens of an iteration, on all cards; ranks of a sequence share its rows."""
        readers = 1 if self.strategy == "ulysses" else self.cards
        return num_rows(self.size) * longest_row(self.size) * readers


def read_case(text: str) -> Case:
    """Read the words of a case."""
    method, shape, size, spread, *more = text.split(":")
    cards, _, strategy = spread.partition("x")
    return Case(text, method, shape, size, int(cards), strategy, more == ["resume"])


def main() -> int:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that gets scaling.jsonl")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="cases whose text holds one of these")
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="CASE", help="other cases")
    parser.add_argument("--minutes", type=float, default=8.0, help="when they are over, what is left is left out")
    parser.add_argument("--cards", type=int, help="how many to use; all when it is left out")
    args = parser.parse_args()
    cases = [read_case(text) for text in args.cases if any(word in text for word in args.only)]
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, (args.out / "scaling.jsonl").open("a", encoding="utf-8") as file:

        def report(row: dict[str, Any]) -> None:
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{row['case']:58} {describe_row(row)}", flush=True)

        end = time.monotonic() + 60 * args.minutes
        measure(cases, Path(place), args.out, args.cards or count_cards(), end, report)
    print("\n".join(["", *render_table(rows)]))
    return 0


def count_cards() -> int:
    """Count them in a process of its own, so that this one holds no memory of a card; a CPU counts as one."""
    words = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return max(int(subprocess.run(words, capture_output=True, text=True, check=True).stdout), 1)


class Cards:
    """Which cards nobody uses."""

    def __init__(self, count: int) -> None:
        self.free = list(range(count))
        self.changed = threading.Condition()

    def take(self, count: int) -> list[int]:
        """Wait until so many are free, and take them."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.free) >= count)
            taken, self.free = self.free[:count], self.free[count:]
        return taken

    def give(self, taken: list[int]) -> None:
        """Give them back."""
        with self.changed:
            self.free = sorted(self.free + taken)
            self.changed.notify_all()


def measure(
    cases: Sequence[Case],
    place: Path,
    out: Path,
    count: int,
    end: float,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Begin cases in their order, each as soon as its cards are free; `report` is given a row for each."""
    cards, speaking = Cards(count), threading.Lock()

    def work(case: Case, own: list[int], folder: Path) -> None:
        try:
            log = out / f"{case.text.replace(':', '_')}.log"
            row = run_case(case, place, folder, log, own, min(end, time.monotonic() + LIMIT))
        except (OSError, ValueError, LookupError, RuntimeError) as error:
            row = {"failed": f"{type(error).__name__}: {error}"}
        cards.give(own)
        with speaking:
            report({"case": case.text, **row})

    with ThreadPoolExecutor(count) as threads:
        for number, case in enumerate(cases):
            if case.cards > count:
                report({"case": case.text, "failed": f"left out: there are {count} cards"})
                continue
            if not (place / case.shape).exists():
                make_model(case.shape, place / case.shape)
            own = cards.take(case.cards)
            threads.submit(work, case, own, place / f"case{number}")


def make_model(shape: str, folder: Path) -> None:
    """Write a checkpoint with random weights."""
    words = [sys.executable, str(ROOT / "benchmarks" / "training.py"), "make", shape, str(folder)]
    subprocess.run(words, check=True, capture_output=True)


def run_case(case: Case, place: Path, folder: Path, log: Path, cards: list[int], end: float) -> dict[str, Any]:
    """Train; returns the figures, or why there are none."""
    if time.monotonic() > end:
        return {"failed": "left out: no time"}
    folder.mkdir()
    config = folder / "run.yaml"
    config.write_text(json.dumps(describe_run(case, place, folder)), encoding="utf-8")
    words = ["train", str(config), "--work-dir", str(folder / "work")]
    if case.strategy.startswith("deepspeed"):
        words += ["--deepspeed", case.strategy]
    try:
        began, lines = start(words, log, cards, end)
        row = read_figures(case, folder / "work") | {"start_seconds": round(_when(lines, " 1/") - began, 1)}
        if case.resume:
            saved = folder / "work" / f"iter_{SAVED_AT}.pth"
            row["checkpoint_gib"] = round(weigh(saved) / 2**30, 2)
            row["save_seconds"] = round(_when(lines, "Saved ") - _when(lines, f" {SAVED_AT}/"), 1)
            began, lines = start([*words, "--resume", str(saved)], log, cards, end)
            row["resume_seconds"] = round(_when(lines, f" {SAVED_AT + 1}/") - began, 1)
        return row
    except Failed as failed:
        return {"failed": str(failed)}
    finally:
        for path in folder.rglob("*"):  # checkpoints are large, and other cases want the disk
            if path.is_file():
                path.unlink()


def describe_run(case: Case, place: Path, folder: Path) -> dict[str, Any]:
    """Return the run of a case, and write the rows that it reads."""
    length, batch = longest_row(case.size), num_rows(case.size)
    steps = SAVED_AT + MORE if case.resume else STEPS
    rows = folder / "rows.jsonl"
    write_rows(rows, case.tokens // length * steps, length, VOCABULARY[case.shape])
    whole, shared = case.method in TRAINED_WHOLE, case.strategy == "ulysses"
    strategy = {"name": "ddp", "sequence_parallel_size": case.cards} if shared else {"name": case.strategy}
    return {
        "model": {
            "path": str(place / case.shape),
            "tokenizer": str(built_in_model()),  # rows are tokens already, and a run wants one
            "lora": None if whole else {"r": RANK},
            "quant": {"bits": 4} if case.method == "qlora" else None,
            "compile": case.shape != "toy",
            "recompute": "layers" if length > LONG else "none",
        },
        "data": {
            "train": {"path": str(rows), "format": "tokens"},
            "max_length": length,
            "cache": str(folder / "cache"),
        },
        "loop": {"max_iters": steps, "batch_size": batch, "log_every": 1},
        "optim": {"lr": 1e-5},
        "checkpoint": {"every": SAVED_AT if case.resume else None, "last": False},
        **({} if case.strategy.startswith("deepspeed") else {"strategy": strategy}),
    }


def write_rows(path: Path, count: int, length: int, vocabulary: int) -> None:
    """Write rows of random tokens, the same for every case."""
    import numpy as np

    draw = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps({"input_ids": draw.integers(3, vocabulary, length).tolist()}) + "\n")


class Failed(Exception):
    """A run that gave no figures."""


def start(words: list[str], log: Path, cards: list[int], end: float) -> tuple[float, list[tuple[float, str]]]:
    """Type `xtuner WORDS` and wait for its end; returns when it began, and every line with the time it was said.

    The lines go to the end of `log` too.

    Raises:
        Failed: it ended with an error, or not in time.
    """
    env = {
        **os.environ,
        "NPROC_PER_NODE": str(len(cards)),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, cards)),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(POLITE / 2)),
    }
    began = time.monotonic()
    command = [sys.executable, "-m", "xtuner", *words]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(POLITE)
        except subprocess.TimeoutExpired:
            process.kill()

    clock = threading.Timer(max(end - began, 0.0), stop)
    clock.start()
    assert process.stdout is not None
    lines = [(time.monotonic(), line.rstrip()) for line in process.stdout]
    code = process.wait()
    clock.cancel()
    with log.open("a", encoding="utf-8") as file:
        file.writelines(f"{moment - began:7.2f} {line}\n" for moment, line in lines)
    if late.is_set():
        raise Failed(f"stopped after {time.monotonic() - began:.0f} s; it last said: {lines[-1][1] if lines else ''}")
    if code:
        said = [line for _, line in lines if line.strip()][-3:]
        raise Failed(f"exit code {code}: {' | '.join(said)}"[:600])
    return began, lines


def _when(lines: list[tuple[float, str]], word: str) -> float:
    """Return when the first line with `word` was said: of an iteration, ` 8/`, or of a checkpoint."""
    for moment, line in lines:
        if word in line and ("Iter(train)" in line or "/" not in word):
            return moment
    raise Failed(f"it did not say {word}")


def read_figures(case: Case, work_dir: Path) -> dict[str, Any]:
    """Read the scalars that a run has written."""
    path = sorted(work_dir.glob("*/vis_data/scalars.json"))[0]
    steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(steps) <= WARM:
        raise Failed(f"only {len(steps)} iterations were logged")
    seconds = statistics.median(step["time"] for step in steps[WARM:])
    record = json.loads((work_dir / "run.json").read_text(encoding="utf-8"))
    return {
        "cards": case.cards,
        "tokens_per_second_per_card": round(case.tokens / seconds / case.cards),
        "step_seconds": round(seconds, 4),
        "data_seconds": round(statistics.median(step["data_time"] for step in steps[WARM:]), 4),
        "memory_gib": round(steps[-1]["memory"] / 2**10, 2),
        "losses": [round(steps[0]["loss"], 4), round(steps[WARM]["loss"], 4)],
        "versions": record["versions"],
    }


def weigh(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def describe_row(row: dict[str, Any]) -> str:
    """Return the figures of a row in a line."""
    if "failed" in row:
        return str(row["failed"])
    said = f"{row['tokens_per_second_per_card']:>8,} tok/s/card  {row['step_seconds']:8.3f} s"
    said += f"  {row['memory_gib']:6.1f} GiB  begins after {row['start_seconds']:.0f} s  loss {row['losses'][-1]}"
    if "resume_seconds" in row:
        said += (
            f"  checkpoint {row['checkpoint_gib']:.1f} GiB in {row['save_seconds']:.1f} s, "
            f"goes on after {row['resume_seconds']:.0f} s"
        )
    return said


def render_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table of what was measured, beside what one card alone does."""
    done = [(read_case(row["case"]), row) for row in rows if "failed" not in row]
    alone = {
        (case.method, case.shape, case.size): row["tokens_per_second_per_card"] for case, row in done if case.cards == 1
    }
    lines = [f"{'RUN':36}{'STRATEGY':18}{'CARDS':>6}{'TOK/S/CARD':>12}{'OF LINEAR':>11}{'GiB':>8}"]
    for case, row in sorted(done, key=lambda pair: (pair[0].method, pair[0].shape, pair[0].size, pair[0].cards)):
        one = alone.get((case.method, case.shape, case.size))
        speed = row["tokens_per_second_per_card"]
        share = f"{speed / one:.1%}" if one else ""
        name = f"{case.method}:{case.shape}:{case.size}"
        lines.append(f"{name:36}{case.strategy:18}{case.cards:>6}{speed:>12,}{share:>11}{row['memory_gib']:>8.1f}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
