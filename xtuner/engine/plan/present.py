"""The device that is here, as a `Card`."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from xtuner.engine.plan.card import Card, match_card

SIZE = 512
"""Rows and columns of the product that a CPU is timed with."""
MEMINFO = Path("/proc/meminfo")


def read_card(device: torch.device) -> Card:
    """Return the device with the memory that is free on it now and rates from the table; a CPU is timed (20 ms)."""
    if device.type == "cpu":
        return _read_cpu()
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device)
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    found = match_card(torch.cuda.get_device_name(device), free)
    if torch.cuda.get_device_capability(device) < (9, 0):
        found = replace(found, fp8=0.0)
    return replace(found, has_bfloat16=native, host=float(free_memory()))


def share_host(card: Card, processes: int) -> Card:
    """Return `card` for one of so many processes of this machine, which have its host memory in common."""
    memory = card.memory / processes if card.is_cpu else card.memory
    return replace(card, memory=memory, host=card.host / processes)


def free_memory() -> int:
    """Return the bytes of host memory that a program can still take."""
    if MEMINFO.is_file():
        for line in MEMINFO.read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 * 2**30  # a system that does not say; most have this much


def _read_cpu() -> Card:
    matrix = torch.ones(SIZE, SIZE)
    rate = 2.0 * SIZE**3 / _seconds(lambda: matrix @ matrix)
    long = torch.ones(2**21)
    bandwidth = 2.0 * long.nbytes / _seconds(lambda: long.mul(2.0))
    threads = torch.get_num_threads()
    return Card(
        name=f"this CPU ({threads} thread{'s' if threads != 1 else ''})",
        memory=float(free_memory()),
        matmul=rate,
        fp8=0.0,
        attention=(rate / 2, rate / 2),
        attention_alike=(rate / 2, rate / 2),
        bandwidth=bandwidth,
        is_cpu=True,
    )


def _seconds(work: Callable[[], torch.Tensor]) -> float:
    """Time the best of a few."""
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
