"""One iteration of the largest size, for real, beside what was predicted."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xtuner.config.choice import build
from xtuner.dataset.batch import Batch
from xtuner.engine.memory import advise
from xtuner.engine.optim import build_optimiser
from xtuner.engine.plan.plan import Plan
from xtuner.engine.plan.render import say_change
from xtuner.engine.precision import choose_precision, find_device
from xtuner.engine.step import train_step
from xtuner.engine.strategy.single import Single
from xtuner.errors import UserError, is_out_of_memory
from xtuner.model.load import load_model
from xtuner.objective import OBJECTIVES
from xtuner.ops.packing import Packing

GIB = 2**30
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WARM_UP = 64
"""Tokens of the first step."""
MOST_ITERATIONS = 2
"""Of a step: from the second on, gradients are there from the beginning."""


APART = 0.15
"""From so much on prediction and measurement differ."""


@dataclass(frozen=True)
class Measured:
    """`peak` bytes of tensors, `reserved` with what the allocator holds beside them (0: not known), and seconds."""

    peak: int
    reserved: int
    seconds: float


def probe(plan: Plan) -> Measured:
    """Load the model and train a few iterations of full rows of random tokens, as the plan says; nothing is saved.

    Raises:
        UserError: the memory runs out, or would on a CPU; the objective is no plain training; what `load_model` raises.
    """
    spec = plan.resolved()
    if spec.objective.name != "sft":
        raise UserError(f"--probe knows training on texts, not objective={spec.objective.name}.", "Leave --probe out.")
    if plan.card.is_cpu and not plan.fits:
        raise UserError(
            "The probe is not run: by the plan the memory does not suffice, and a full system stops programs.",
            say_change(plan),
        )
    device = find_device()
    precision = choose_precision(spec, device)
    strategy = Single(device, precision)
    objective = build(OBJECTIVES, spec.objective, "objective")
    try:
        torch.manual_seed(spec.seed)
        loaded = load_model(spec.model, device=str(device), dtype=precision.weights, train=True)
        model = strategy.place(loaded, lambda placed: build_optimiser(spec.optim, placed))

        def step(tokens: int, iterations: int) -> float:
            """Do one optimiser step; returns the seconds of an iteration."""
            start = time.perf_counter()
            batches = [make_batch(plan, tokens)] * iterations
            options: Any = {"seed": spec.seed, "lr": spec.optim.lr, "max_norm": spec.optim.max_norm}
            train_step(strategy, objective, model, batches, first=0, after=lambda micro: None, **options)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return (time.perf_counter() - start) / iterations

        step(min(WARM_UP, plan.work.tokens), 1)  # makes the moments, and imports what a first step imports
        program = _resident() - round(plan.memory.trained + plan.memory.optimiser + sum(plan.memory.frozen.values()))
        for _ in range(2 if plan.chosen.compiled else 1):  # of compiled layers the first one is compilation
            _restart(device)
            seconds = step(plan.work.tokens, min(spec.loop.accumulate, MOST_ITERATIONS))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("The memory ran out in the probe.", advise(spec, plan)) from error
    if device.type == "cuda":
        peak, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return Measured(peak, reserved, seconds)
    return Measured(_resident("VmHWM") - program, 0, seconds)


def make_batch(plan: Plan, tokens: int) -> Batch:
    """Make a micro-batch of random tokens, all learned, in segments as long as they may be, though not all alike."""
    segment = min(plan.work.segment, tokens)
    lengths = [segment] * (tokens // segment)
    if rest := tokens - sum(lengths):
        lengths.append(rest)
    elif segment > 1 and not plan.work.alike:
        lengths[-1:] = [segment - 1, 1]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(plan.shape.vocabulary, (1, tokens), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return Batch(ids, ids.clone(), positions, Packing.from_lengths(lengths))


def render_probe(plan: Plan, measured: Measured) -> str:
    """Set prediction and measurement side by side."""
    predicted = plan.memory.peak + plan.memory.slack
    rows = [("", "predicted", "measured")]
    if measured.peak > 0:
        rows.append(("peak, GiB", f"{predicted / GIB:.2f}", _beside(measured.peak / GIB, predicted / GIB, ".2f")))
    seconds = plan.speed.seconds
    rows.append(("seconds", f"{seconds:.3f}", _beside(measured.seconds, seconds, ".3f")))
    lines = [f"        {title:<10} {left:>9}  {right}" for title, left, right in rows]
    if measured.peak > 0 and not measured.reserved:
        lines.append("        Measured is what the process holds beside the program, with what its allocator keeps.")
    if measured.reserved:
        lines.append(f"        With what the allocator keeps for later it is {measured.reserved / GIB:.2f} GiB.")
    apart = max(abs(measured.seconds / seconds - 1), abs(measured.peak / predicted - 1) if measured.peak > 0 else 0.0)
    if apart > APART:
        lines.append(f"        They are more than {APART:.0%} apart: for this run believe the measurement.")
    return "\n".join(lines)


def _beside(measured: float, predicted: float, form: str) -> str:
    return f"{measured:>8{form}}  ({measured / predicted - 1:+.0%})"


def _restart(device: torch.device) -> None:
    """Forget earlier peaks."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            CLEAR.write_text("5", "ascii")


def _resident(field: str = "VmRSS") -> int:
    """Return the bytes of this process that are in memory now, or with VmHWM that have been; 0 if nobody says."""
    if STATUS.is_file():
        for line in STATUS.read_text("ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0
