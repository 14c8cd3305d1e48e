"""Training speed and memory on one card: ours and others', one after another on the same machine.

    python benchmarks/training.py table OUT [TABLE | CASE ...]   run every case in its own process, and write
                                                                 OUT/TABLE.jsonl (OUT/training.jsonl for single cases)
    python benchmarks/training.py run CASE FOLDER                one case on a checkpoint: a line of JSON for each size
    python benchmarks/training.py make SHAPE FOLDER              write a checkpoint with random weights
    python benchmarks/training.py list [TABLE ...]               print the cases of tables

Options of `table`: --limit SECONDS for a case (default 240), --within SECONDS for all: what would begin later is left
out, --models FOLDER: checkpoints are made there and kept for the next call.

A case is TOOL:METHOD:SHAPE:SIZE[,SIZE...][:SETTING=VALUE...], for example xtuner:lora:llama3-8b:2x4096:recompute=none.
Tools: xtuner, hf (transformers + PEFT), liger, unsloth, trl, unsloth-trl (TRL's trainer), where they are installed.
Sizes: ROWSxLENGTH; chatN: N short samples, padded to the longest by others and in packs in ours; longest: how many
tokens fit. Settings: those of an xtuner run (recompute, compile, optim), and card=8GB: as much memory as such a card.

LoRA and QLoRA have rank 64 on all linear layers without dropout; one AdamW step per micro-batch of random tokens,
bfloat16; medians after warm-up, the host never waiting for the card between steps. Tokens are real ones, never padding.
MFU counts 4 N FLOP a token where weights are frozen, else 6 N, and causal attention, over 790 TFLOP/s. Memory is what
torch allocated and reserved at its peak. Rows of ours hold what the plan predicted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cases import TABLES  # noqa: E402
from benchmarks.workload import (  # noqa: E402
    CHAT,
    LONGEST,
    SHAPES,
    VOCABULARY,
    Case,
    Lap,
    flops,
    longest_row,
    micro_batches,
    num_rows,
    packed,
    read_case,
)

STEPS, WARM = 12, 4
LARGE, LARGE_STEPS = 65536, 4
"""From so many tokens on a micro-batch takes long enough to be measured in fewer steps."""
CHAT_STEPS, CHAT_WARM = 16, 8
PEAK_FLOPS = 790e12
PACK = 8192
"""Tokens of a pack of chat samples in ours."""
LIMIT = 240.0
MARK = "row "
"""Begins a line of figures, so that what libraries print is not taken for one."""


def main(words: list[str] | None = None) -> int:
    """Read the words and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="table | run | make | list")
    table_words = verbs.add_parser("table")
    table_words.add_argument("out", type=Path)
    table_words.add_argument("names", nargs="*", default=["main"], metavar="TABLE | CASE")
    table_words.add_argument("--limit", type=float, default=LIMIT, help="seconds for a case")
    table_words.add_argument("--within", type=float, default=float("inf"), help="seconds for all")
    table_words.add_argument("--models", type=Path, help="make checkpoints here, and keep them")
    run_words = verbs.add_parser("run")
    run_words.add_argument("case")
    run_words.add_argument("folder")
    make_words = verbs.add_parser("make")
    make_words.add_argument("shape", choices=SHAPES)
    make_words.add_argument("folder", type=Path)
    list_words = verbs.add_parser("list")
    list_words.add_argument("names", nargs="*", metavar="TABLE")
    args = parser.parse_args(words)
    if args.verb == "table":
        with tempfile.TemporaryDirectory() as place:
            run_tables(args.out, args.names, args.models or Path(place), limit=args.limit, within=args.within)
    elif args.verb == "run":
        for row in run(args.case, args.folder):
            print(f"\n{MARK}{json.dumps(row)}", flush=True)
    elif args.verb == "make":
        make(args.shape, args.folder)
    else:
        print("\n".join(f"{name:8} {case}" for name in args.names or TABLES for case in TABLES[name]))
    return 0


def make(shape: str, folder: Path) -> None:
    """Write a Llama checkpoint with random bfloat16 weights and a tokenizer of three words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from benchmarks.device import device

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2**21, bos_token_id=1, eos_token_id=2)
    with torch.device(device()):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="8GB")
    words = Tokenizer(BPE(vocab={"<unk>": 0, "<s>": 1, "</s>": 2}, merges=[]))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)


def run(text: str, folder: str) -> Iterator[dict[str, Any]]:
    """Do a case; yields the figures of each of its sizes. When memory runs out the larger ones are not tried."""
    from benchmarks import longest, trainer
    from benchmarks.contender import Contender, build_contender
    from benchmarks.device import OUT_OF_MEMORY, describe, limit_memory, where

    case = read_case(text)
    if "unsloth" in case.tool:
        import unsloth  # noqa: F401 - before anything uses the card: it sets up torch's allocator
    held = limit_memory(case.settings["card"]) if "card" in case.settings else None
    about = {**({} if held is None else {"limit_gib": round(held / 2**30, 2)}), **where()}
    contender: Contender | None = None
    failed = ""
    for size in case.sizes:
        row: dict[str, Any] = {"case": case.named(size)}
        if not failed:
            try:
                if size == LONGEST:
                    row |= longest.search(case, folder, held)
                elif case.tool in trainer.TOOLS:
                    laps = trainer.train(case, folder, size, CHAT_STEPS)
                    row |= figures(case, laps, micro_batches(size, CHAT_STEPS))
                else:
                    work = batches(case, size)
                    contender = contender or build_contender(case, folder, _largest(case))
                    row |= race(case, contender, work) | foresee(case, contender, folder, work)
            except Exception as error:
                failed = describe(error)
        if failed:
            row["failed"] = failed
        yield row | about
        if failed and failed != OUT_OF_MEMORY:
            return


def batches(case: Case, size: str) -> list[list[int]]:
    """Return the lengths of the samples of each step: short ones in packs in ours, as the data has them in others."""
    if not size.startswith(CHAT):
        return list(micro_batches(size, STEPS if num_rows(size) * longest_row(size) < LARGE else LARGE_STEPS))
    if case.tool == "xtuner":
        return packed(size, CHAT_STEPS, int(case.settings.get("pack", PACK)))
    return list(micro_batches(size, CHAT_STEPS))


def _largest(case: Case) -> list[int]:
    works = (batches(case, size) for size in case.sizes)
    return max((micro for work in works for micro in work), key=sum)


def race(case: Case, contender: Any, work: list[list[int]]) -> dict[str, Any]:
    """Train on random tokens of these lengths, one step after another as a run does; return the figures."""
    import torch

    from benchmarks.device import between, forget, mark

    if len({sum(lengths) for lengths in work}) == 1:
        torch.compiler.reset()  # code for this size, as in a run of its own
    draw = torch.Generator().manual_seed(0)
    vocabulary = VOCABULARY[case.shape]
    steps = [[torch.randint(3, vocabulary, (length,), generator=draw) for length in lengths] for lengths in work]
    forget()
    marks, losses = [mark()], []
    for samples in steps:
        losses.append(contender.step(samples))
        marks.append(mark())
    laps = []
    for lengths, seconds, loss in zip(work, between(marks), losses, strict=True):
        computed = sum(lengths) if case.tool == "xtuner" else max(lengths) * len(lengths)
        laps.append(Lap(seconds, sum(lengths), computed, float(loss)))
    return figures(case, laps, work)


def figures(case: Case, laps: list[Lap], work: Any) -> dict[str, Any]:
    """Return what is written of a race."""
    from benchmarks.device import peaks

    kept = laps[CHAT_WARM if len(laps) > STEPS else min(WARM, len(laps) // 2) :]
    speed = statistics.median(lap.tokens / lap.seconds for lap in kept)
    lengths = [length for micro in work for length in micro]
    arithmetic = flops(case.shape, lengths, case.method) / sum(lengths)
    real, computed = sum(lap.tokens for lap in laps), sum(lap.computed for lap in laps)
    return {
        "tokens_per_second": round(speed),
        "mfu": round(speed * arithmetic / PEAK_FLOPS, 3),
        **peaks(),
        "real_tokens": round(real / computed, 3),
        "first_step_seconds": round(laps[0].seconds, 1),
        "losses": [round(laps[0].loss, 4), round(laps[-1].loss, 4)],
    }


def foresee(case: Case, contender: Any, folder: str, work: list[list[int]]) -> dict[str, Any]:
    """Return what our plan says of the same work, with what was chosen when the model was loaded."""
    from benchmarks.contender import our_plan
    from xtuner.engine.plan.card import GIB
    from xtuner.engine.plan.plan import make_plan

    if contender.plan is None:
        return {}
    asked = our_plan(case, folder, max(work, key=sum))
    plan = make_plan(asked.spec, asked.shape, asked.card, asked.work, chosen=contender.plan.chosen)
    return {
        "recompute": plan.chosen.recompute,
        "predicted": {
            "allocated_gib": round(plan.memory.peak / GIB, 2),
            "tokens_per_second": round(plan.tokens_per_second),
            "fits": plan.fits,
        },
    }


def run_tables(out: Path, names: list[str], models: Path, *, limit: float, within: float) -> None:
    """Run tables and single cases one after another; a case that fails is a row too."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + within
    for name in names:
        with (out / f"{name if name in TABLES else 'training'}.jsonl").open("a", encoding="utf-8") as file:
            for text in TABLES.get(name, [name]):
                for row in attempt(read_case(text), models, min(limit, end - time.monotonic())):
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    print(f"{row['case']:60} {describe_row(row)}", flush=True)


def attempt(case: Case, models: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Run a case in a process of its own; yields a row for each of its sizes."""
    folder = models / case.shape
    began = time.monotonic()
    said: list[str] = []
    failed = "left out: no time"
    if seconds > 0:
        if not folder.exists():
            subprocess.run([sys.executable, __file__, "make", case.shape, str(folder)], check=True, capture_output=True)
        words = [sys.executable, __file__, "run", case.named(",".join(case.sizes)), str(folder)]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            try:
                subprocess.run(words, stdout=out, stderr=errors, env=env, timeout=seconds)
                failed = ""
            except subprocess.TimeoutExpired:
                failed = f"stopped after {seconds:.0f} s"
            out.seek(0)
            said = [line.removeprefix(MARK) for line in out if line.startswith(MARK)]
            errors.seek(0)
            failed = failed or (errors.read().strip().splitlines() or ["it ended without words"])[-1][:300]
    for line in said:
        yield json.loads(line)
    for size in case.sizes[len(said) :]:
        yield {"case": case.named(size), "failed": failed, "seconds": round(time.monotonic() - began)}


def describe_row(row: dict[str, Any]) -> str:
    """Return the figures of a row in a line."""
    if "failed" in row:
        return str(row["failed"])
    if "longest" in row:
        return f"{row['longest'] or 0:>9,} tokens fit; {row['line']:,} by a line, {row.get('plan') or 0:,} by the plan"
    memory = f"{row['allocated_gib']:6.2f} GiB ({row['reserved_gib']:.2f} reserved)  " if row["allocated_gib"] else ""
    predicted = row.get("predicted", {})
    plan = f"  plan: {predicted['tokens_per_second']:,}, {predicted['allocated_gib']:.2f} GiB" if predicted else ""
    return f"{row['tokens_per_second']:>7,} tok/s  MFU {row['mfu']:.0%}  {memory}loss {row['losses'][-1]}{plan}"


if __name__ == "__main__":
    sys.exit(main())
