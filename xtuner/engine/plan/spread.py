"""How several cards share a run: what each of them holds a part of, by strategy (no torch).

By the formulas of ZeRO (https://arxiv.org/abs/1910.02054) and the defaults of DeepSpeed and FSDP2; not measured.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xtuner.config.spec import RunSpec
from xtuner.engine.plan.shape import Shape

BUCKET = 5e8
"""Numbers of a message of DeepSpeed (`reduce_bucket_size`); it makes the buffer whole, however little is sent."""
LIVE = 1e9
"""Numbers that ZeRO-3 holds whole at a time (`stage3_max_live_parameters`)."""
PARTS = ("optimiser", "gradients", "weights")
"""What a run holds; ZeRO's stages divide the first, the first two, all."""
AHEAD = 2
"""Layers that FSDP2 holds whole at a time: the one that computes, and the next."""


@dataclass(frozen=True)
class Spread:
    """Each card holds one of so many parts; 1: all of it."""

    weights: int = 1
    quantised: int = 1
    gradients: int = 1
    optimiser: int = 1
    on_host: frozenset[str] = frozenset()
    """Which of these wait in host memory."""
    whole_gradients: bool = False
    """Gradients of all weights are there from the start to the end of an iteration, on every card."""
    added_gradients: bool = False
    """The same, where they add up over several iterations."""
    halves: bool = False
    """Trained weights are in 16 bits, and their fp32 copies belong to the optimiser (DeepSpeed)."""
    gathers: bool = False
    """Layers are put together while they compute, in the format that is computed in."""
    live: float = 0.0
    """Numbers that are whole at a time; 0: `AHEAD` layers, embedding and head."""
    messages: float = 0.0
    """Numbers of the buffers for what cards send one another."""
    words: str = ""
    """What a card holds, for the page."""


def spread_of(spec: RunSpec, cards: int) -> Spread:
    """Say what each of `cards` cards holds under the strategy of `spec`."""
    name, options = spec.strategy.name, spec.strategy.options
    if name == "fsdp":
        host = frozenset(PARTS if options.get("offload") else ())
        words = f"{_part(cards)} of {_list(PARTS)} (FSDP2){_waits(host)}"
        return Spread(cards, 1, cards, cards, frozenset(host), added_gradients=True, gathers=True, words=words)
    if name == "deepspeed":
        return _zero(options.get("config"), cards)
    if cards > 1:
        return Spread(whole_gradients=True, words="everything (data parallel)")
    return Spread(whole_gradients=name == "ddp")


def zero_stage(spec: RunSpec) -> int:
    """Return which of ZeRO's stages a run uses; 0: none."""
    config = spec.strategy.options.get("config") if spec.strategy.name == "deepspeed" else None
    zero = config.get("zero_optimization") if isinstance(config, Mapping) else None
    stage = str(zero.get("stage", 0)) if isinstance(zero, Mapping) else "0"
    return int(stage) if stage in ("1", "2", "3") else 0


def whole_numbers(spread: Spread, shape: Shape, per_layer: float) -> float:
    """Return how many numbers are put together at a time, of layers with `per_layer` each."""
    if not spread.gathers:
        return 0.0
    ends = shape.embedding * (1 if shape.tied else 2)
    return min(spread.live, shape.layers * per_layer + ends) if spread.live else AHEAD * per_layer + ends


def _zero(config: Any, cards: int) -> Spread:
    settings = config if isinstance(config, Mapping) else {}
    zero = settings.get("zero_optimization")
    zero = zero if isinstance(zero, Mapping) else {"stage": 2}
    stage = int(zero.get("stage", 0)) if str(zero.get("stage", 0)) in ("0", "1", "2", "3") else 0

    def waits(part: str) -> bool:
        setting = zero.get(part)
        return isinstance(setting, Mapping) and str(setting.get("device", "none")) != "none"

    host = {"optimiser", *(("gradients",) if stage >= 2 else ())} if waits("offload_optimizer") else set()
    host |= {"weights"} if stage == 3 and waits("offload_param") else set()
    bucket = _number(zero.get("reduce_bucket_size"), BUCKET)
    divided = PARTS[:stage]
    words = f"{_part(cards)} of {_list(divided)}" if divided else "everything"
    return Spread(
        weights=cards if stage == 3 else 1,
        quantised=cards if stage == 3 else 1,
        gradients=cards if stage >= 2 else 1,
        optimiser=cards if stage >= 1 else 1,
        on_host=frozenset(host),
        added_gradients=stage < 2,
        halves=True,
        gathers=stage == 3,
        live=_number(zero.get("stage3_max_live_parameters"), LIVE) if stage == 3 else 0.0,
        messages=bucket * (2 if zero.get("overlap_comm") and stage < 3 else 1) if stage else 0.0,
        words=f"{words} (ZeRO-{stage}){_waits(host)}",
    )


def _list(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _waits(host: Collection[str]) -> str:
    if not host:
        return ""
    what = "all of it" if len(host) == len(PARTS) else _list(sorted(host))
    return f"; {what} in host memory"


def _part(cards: int) -> str:
    return "all" if cards == 1 else f"1/{cards}"


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
