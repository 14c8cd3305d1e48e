"""The longest sample that fits into a card's memory: a line through two short ones, then real attempts near its end.

An attempt stops once the last layers have gone backward: by then all that is kept of the forward pass has been there
together with the loss and a layer at work, and gradients were there from the beginning. Walking back through the rest
would take minutes and no more memory. With the setting `segment` a row of ours is cut into segments of so many tokens,
whose attention takes less time, and as much memory.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contender import OURS, Contender, build_contender, our_plan
from benchmarks.device import GIB, forget, peaks, wait
from benchmarks.workload import SHAPES, VOCABULARY, Case
from xtuner.engine.plan.choose import fits
from xtuner.errors import is_out_of_memory

SHORT = (8192, 16384)
STEP = 1024
MOST = 2**21
LAST_LAYERS = 2
TRIES = 3


class Enough(Exception):
    """An attempt has shown what it was to show."""


def search(case: Case, folder: str, held: float | None) -> dict[str, Any]:
    """Return the longest sample that was trained and the shortest that was not, within `held` bytes.

    Settings of the case: `most` tokens at most, `tries` attempts, `short=A/B` tokens of the two samples of the line.
    """
    most = int(case.settings.get("most", MOST))
    least, more = (int(number) for number in case.settings.get("short", "{}/{}".format(*SHORT)).split("/"))
    limit = held or (torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 64 * GIB)
    planned = longest_by_plan(case, folder, most) if case.tool == OURS else None
    segment = int(case.settings.get("segment", most))
    contender = build_contender(case, folder, cut(planned or more, segment))
    try_length = attempts(case, contender, segment)
    contender.step(make_samples(case, [least]))  # makes the moments
    found = approach(try_length, limit / GIB, (least, more), most, int(case.settings.get("tries", TRIES)))
    return {"plan": planned, "recompute": contender.plan.chosen.recompute if contender.plan else None, **found}


def approach(
    try_length: Callable[[int], float | None], limit: float, short: tuple[int, int], most: int, tries: int
) -> dict[str, Any]:
    """Go near the longest sample within `limit` GiB; `try_length` returns the peak of so many tokens, or None."""
    least, more = short
    first, second = try_length(least), try_length(more)
    if first is None or second is None:
        return {"longest": None if first is None else least, "refused": least if first is None else more, "line": least}
    slope = max((second - first) / (more - least), 1e-9)
    line = max(more, min(most, least + int((limit - first) / slope) // STEP * STEP))
    longest, memory, refused, seconds = more, second, None, 0.0
    guess = max(more, int(line * 0.97) // STEP * STEP)
    for _ in range(tries):
        began = time.perf_counter()
        reached = try_length(guess)
        if reached is None:
            refused = guess
            if longest > more:
                break
            guess = int(guess * 0.93) // STEP * STEP
        else:
            longest, memory, seconds = guess, reached, time.perf_counter() - began
            further = min(most, int(guess * 1.03) // STEP * STEP)
            if refused is not None or further == guess:
                break
            guess = further
    return {
        "longest": longest,
        "refused": refused,
        "line": line,
        "gib_per_1000_tokens": round(slope * 1000, 5),
        "seconds": round(seconds, 1),
        "allocated_gib": round(memory, 2),
    }


def longest_by_plan(case: Case, folder: str, most: int) -> int | None:
    """Return the most tokens that the plan lets fit, a multiple of 1,024; None if not even those do."""
    segment = int(case.settings.get("segment", most))

    def fitting(blocks: int) -> bool:
        plan = our_plan(case, folder, cut(blocks * STEP, segment))
        return fits(plan.memory, plan.card)

    low, high = 0, most // STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fitting(middle) else (low, middle - 1)
    return low * STEP or None


def cut(tokens: int, segment: int) -> list[int]:
    """Return the lengths of segments of at most `segment` tokens, as equal as can be."""
    count = -(-tokens // segment)
    return [tokens // count] * (count - 1) + [tokens - tokens // count * (count - 1)]


def attempts(case: Case, contender: Contender, segment: int) -> Callable[[int], float | None]:
    """Return a function that tries samples of so many tokens: the peak in GiB, or None when memory runs out."""
    trained = [parameter for parameter in contender.model.parameters() if parameter.requires_grad]
    layers = SHAPES[case.shape]["num_hidden_layers"]
    name = f"layers.{layers - 1 - LAST_LAYERS}."
    stop_at = next(weight for key, weight in contender.model.named_parameters() if name in key and weight.requires_grad)
    armed = [False]

    def stop(weight: Tensor) -> None:
        if armed[0]:
            raise Enough

    stop_at.register_post_accumulate_grad_hook(stop)

    def try_length(tokens: int) -> float | None:
        _start_over(trained)
        forget()
        samples = make_samples(case, cut(tokens, segment) if case.tool == OURS else [tokens])
        armed[0] = True
        refused = False
        try:
            contender.step(samples)
        except Enough:
            wait()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            refused = True
        armed[0] = False
        return None if refused else peaks()["allocated_gib"] or 0.0

    return try_length


def _start_over(trained: list[nn.Parameter]) -> None:
    """Let all gradients be there, and zero."""
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)


def make_samples(case: Case, lengths: list[int]) -> list[Tensor]:
    """Return random tokens."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY[case.shape], (length,), generator=generator) for length in lengths]
