"""What a run may keep and what it recomputes, and whether it is compiled (no torch)."""

import math
from dataclasses import dataclass

from xtuner.config.spec import RunSpec
from xtuner.engine.plan.card import Card
from xtuner.engine.plan.memory import Memory, weigh
from xtuner.engine.plan.shape import Shape
from xtuner.engine.plan.speed import COMPILE_SECONDS, clock
from xtuner.engine.plan.spread import zero_stage
from xtuner.engine.plan.work import Work

CHOICE_MARGIN = 1.06
"""A choice leaves this much free: allocators lose some memory between tensors, and other programs want some."""
FIT_MARGIN = 1.02
"""What is said to fit leaves this much."""
WHOLE_MLP = ("bloom", "gpt2", "opt")
"""Kinds whose MLP `model.tiled_mlp` refuses."""
MORE_THAN_ONE = ("codegen", "falcon", "gpt_neo", "gptj", "mpt")
"""Kinds whose layers give more than what goes to the next one, which `model.layer_groups` refuses."""


@dataclass(frozen=True)
class Chosen:
    """How the layers run, and why; an empty reason is one that was asked for."""

    recompute: str | int
    compiled: bool
    why_recompute: str = ""
    why_compiled: str = ""


def choose(spec: RunSpec, shape: Shape, card: Card, work: Work, *, can_compile: bool = True) -> Chosen:
    """Decide what `model.recompute` and `model.compile` leave open ("auto").

    Whether to compile is a matter of time, unless only the other way fits. A machine that is not here is thought to
    have twice as much host memory free as its card has; more, where nothing else fits.
    """
    compiled, why_compiled = _choose_compiled(spec, shape, card, work, can_compile)
    chosen = _choose_recompute(spec, shape, card, work, compiled, why_compiled)
    if spec.model.compile != "auto" or card.is_cpu or not can_compile:
        return chosen

    def suffices(way: Chosen) -> bool:
        return _has_room(weigh(spec, shape, card, work, recompute=way.recompute, compiled=way.compiled), card)

    if suffices(chosen):
        return chosen
    other = _choose_recompute(spec, shape, card, work, not compiled, "takes less memory, and would not fit otherwise")
    return other if suffices(other) else chosen


def _choose_recompute(spec: RunSpec, shape: Shape, card: Card, work: Work, compiled: bool, why_compiled: str) -> Chosen:
    if spec.model.recompute != "auto":
        return Chosen(spec.model.recompute, compiled, "", why_compiled)

    def weigh_as(recompute: str | int) -> Memory:
        return weigh(spec, shape, card, work, recompute=recompute, compiled=compiled)

    def seconds(recompute: str | int) -> float:
        return clock(spec, shape, card, work, recompute=recompute, compiled=compiled).seconds

    def slower(recompute: str | int) -> str:
        return f"{seconds(recompute) / seconds('none') - 1:.0%}"

    if _has_room(weigh_as("none"), card):
        why = f"all activations fit; recomputing them would take {slower('layers')} longer"
        return Chosen("none", compiled, why, why_compiled)
    fitting = [way for way in list_ways(spec, shape, card) if _has_room(weigh_as(way), card)]
    if fitting:
        usual = [way for way in fitting if not math.isinf(card.host) or weigh_as(way).host <= 2 * card.memory]
        best = min(usual or fitting, key=seconds)
        return Chosen(best, compiled, f"the fastest that fits; {slower(best)} slower than none", why_compiled)
    if weigh_as("layers").least <= card.memory:
        return Chosen("layers", compiled, "moments must go to the host all the same", why_compiled)
    barely = [way for way in list_ways(spec, shape, card) if fits(weigh_as(way), card)]
    if barely:
        best = min(barely, key=seconds)
        return Chosen(best, compiled, f"the fastest that barely fits; {slower(best)} slower than none", why_compiled)
    return Chosen("layers", compiled, "which does not suffice", why_compiled)


def _has_room(memory: Memory, card: Card) -> bool:
    return memory.need * CHOICE_MARGIN <= card.memory and memory.host <= card.host


def list_ways(spec: RunSpec, shape: Shape, card: Card) -> list[str | int]:
    """Return the ways of `model.recompute` that this model and device have; the same list on every rank."""
    ways: list[str | int] = ["none", *range(1, shape.layers), "layers"]
    plain = any(linear.place == "mlp_out" for linear in shape.linears) and all(x.share == 1 for x in shape.linears)
    plain = plain and shape.kind not in WHOLE_MLP and zero_stage(spec) < 3
    if plain:
        ways.append("mlp")
    if not card.is_cpu:
        ways += ["offload", "offload_layers"] if plain else ["offload_layers"]
        if plain and shape.kind not in MORE_THAN_ONE and spec.strategy.name != "fsdp":
            ways.append("offload_groups")
    return ways


def _choose_compiled(spec: RunSpec, shape: Shape, card: Card, work: Work, can_compile: bool) -> tuple[bool, str]:
    if spec.model.compile != "auto":
        return spec.model.compile, ""
    if card.is_cpu:
        return False, "on a CPU it gains too little"
    if not can_compile:
        return False, "there is no compiler (Triton) here"
    plain, fused = (
        clock(spec, shape, card, work, recompute="none", compiled=compiled).seconds for compiled in (False, True)
    )
    enough = math.ceil(COMPILE_SECONDS / max(plain - fused, 1e-9))
    if work.iterations is None:
        return True, f"pays in runs of more than about {enough:,} iterations"
    if work.iterations > enough:
        return True, f"saves about {plain / fused - 1:.0%}, and the run is long enough to earn it back"
    return False, f"would pay after about {enough:,} iterations"


def fits(memory: Memory, card: Card) -> bool:
    """Whether a run has the memory it needs."""
    return memory.least * FIT_MARGIN <= card.memory and memory.host <= card.host


def weigh_chosen(spec: RunSpec, shape: Shape, card: Card, work: Work) -> Memory:
    """Count the memory of a spec with what would be chosen for it."""
    chosen = choose(spec, shape, card, work)
    return weigh(spec, shape, card, work, recompute=chosen.recompute, compiled=chosen.compiled)
