"""The device of a benchmark: its clock, its memory, its limits, and the versions of what runs on it."""

import gc
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

import torch

from xtuner.engine.plan.card import find_card
from xtuner.engine.plan.memory import CONTEXT
from xtuner.errors import is_out_of_memory

GIB = 2**30
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "unsloth", "trl", "liger-kernel", "triton")

OUT_OF_MEMORY = "out of memory"


def device() -> str:
    """Return the device that is trained on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Wait until the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def mark() -> "float | torch.cuda.Event":
    """Return a mark in what the device has been given to do, without waiting for it."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(marks: list[Any]) -> list[float]:
    """Wait, and return the seconds from each mark to the next."""
    wait()
    pairs = pairwise(marks)
    if not torch.cuda.is_available():
        return [later - earlier for earlier, later in pairs]
    return [earlier.elapsed_time(later) / 1000 for earlier, later in pairs]


def limit_memory(card: str) -> float:
    """Let this process have no more than a card of this name or size (`8GB`) has left for tensors; returns the bytes.

    A small card is not all there for tensors: the driver holds what the plan counts for it.
    """
    size = find_card(card).memory - CONTEXT
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / total))
    return size


def forget() -> None:
    """Give back what is not used, and forget earlier peaks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peaks() -> dict[str, float | None]:
    """Return the peak of memory in GiB, in tensors and as held by the allocator; None on a CPU."""
    if not torch.cuda.is_available():
        return {"allocated_gib": None, "reserved_gib": None}
    return {
        "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


def where() -> dict[str, Any]:
    """Return the card and the versions of what takes part."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"card": card, "versions": found}


def describe(error: BaseException) -> str:
    """Say in a line why a case failed."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"[:300]
