"""What a run may keep and what it recomputes, whether it is compiled, and what would make it fit (no torch)."""

import math
from dataclasses import dataclass, replace

from xtuner.config.spec import RunSpec
from xtuner.config.spec_override import override_spec
from xtuner.engine.plan.card import Card
from xtuner.engine.plan.memory import Memory, is_trained_whole, weigh
from xtuner.engine.plan.shape import Shape
from xtuner.engine.plan.speed import COMPILE_SECONDS, clock
from xtuner.engine.plan.work import Work, row_of

CHOICE_MARGIN = 1.06
"""A choice leaves this much free: allocators lose some memory between tensors, and other programs want some."""
FIT_MARGIN = 1.02
"""What is said to fit leaves this much."""
SHORTEST = 256
"""Tokens; advice goes no further down."""


@dataclass(frozen=True)
class Chosen:
    """How the layers run, and why; an empty reason is one that was asked for."""

    recompute: str | int
    compiled: bool
    why_recompute: str = ""
    why_compiled: str = ""


def choose(spec: RunSpec, shape: Shape, card: Card, work: Work, *, can_compile: bool = True) -> Chosen:
    """Decide what `model.recompute` and `model.compile` leave open ("auto")."""
    compiled, why_compiled = _choose_compiled(spec, shape, card, work, can_compile)
    if spec.model.recompute != "auto":
        return Chosen(spec.model.recompute, compiled, "", why_compiled)
    layers = shape.layers

    def fits(recompute: str | int) -> bool:
        memory = weigh(spec, shape, card, work, recompute=recompute, compiled=compiled)
        return memory.need * CHOICE_MARGIN <= card.memory

    def slower(recompute: str | int) -> str:
        kept = clock(spec, shape, card, work, recompute="none", compiled=compiled).seconds
        redone = clock(spec, shape, card, work, recompute=recompute, compiled=compiled).seconds
        return f"{redone / kept - 1:.0%}"

    if fits("none"):
        why = f"all activations fit; recomputing them would take {slower('layers')} longer"
        return Chosen("none", compiled, why, why_compiled)
    fitting = next((count for count in range(1, layers) if fits(count)), None)
    if fitting is not None:
        return Chosen(fitting, compiled, f"as few as fit; {slower(fitting)} slower than none", why_compiled)
    if fits("layers"):
        return Chosen("layers", compiled, f"as few as fit; {slower('layers')} slower than none", why_compiled)
    if fits("offload"):
        return Chosen("offload", compiled, "the inputs of the layers would not fit either", why_compiled)
    return Chosen("layers", compiled, "which does not suffice", why_compiled)


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
    return memory.need * FIT_MARGIN <= card.memory


def weigh_chosen(spec: RunSpec, shape: Shape, card: Card, work: Work) -> Memory:
    """Count the memory of a spec with what would be chosen for it."""
    chosen = choose(spec, shape, card, work)
    return weigh(spec, shape, card, work, recompute=chosen.recompute, compiled=chosen.compiled)


def list_changes(spec: RunSpec, *, is_cpu: bool) -> list[list[str]]:
    """Return settings that save memory, from those that cost nothing to those that change what is learned."""
    changes: list[list[str]] = []
    loop, model, optim = spec.loop, spec.model, spec.optim
    if loop.batch_size > 1:
        changes.append(["loop.batch_size=1", f"loop.accumulate={loop.accumulate * loop.batch_size}"])
    if model.recompute not in ("auto", "layers", "offload"):
        changes.append(["model.recompute=layers"])
    if model.recompute == "layers" and not is_cpu:
        changes.append(["model.recompute=offload"])
    if "8bit" not in optim.name and optim.name != "sgd":
        changes.append(["optim.name=paged_adamw_8bit"])
    if model.lora is not None and model.quant is None:
        changes.append(["model.quant.bits=4"])
    length = spec.data.max_length // 2
    while length >= SHORTEST:
        words = [f"data.max_length={length}"]
        changes.append([*words, f"data.pack_length={length}"] if spec.data.pack_length else words)
        length //= 2
    if is_trained_whole(spec):
        changes += [["model.lora.r=64"], ["model.lora.r=64", "model.quant.bits=4"]]
    return changes


def find_change(spec: RunSpec, shape: Shape, card: Card, work: Work) -> tuple[list[str], Memory] | None:
    """Return the settings that make a run fit on `card`: the cheapest one that suffices alone, else several; and what
    it then needs. None: nothing does."""
    changes = list_changes(spec, is_cpu=card.is_cpu)
    together: list[str] = []
    for words in changes:
        changed = override_spec(spec, words)
        memory = weigh_chosen(changed, shape, card, work_of(changed, work))
        if fits(memory, card):
            return words, memory
    for words in changes:
        together = _merge(together, words)
        changed = override_spec(spec, together)
        memory = weigh_chosen(changed, shape, card, work_of(changed, work))
        if fits(memory, card):
            return together, memory
    return None


def _merge(earlier: list[str], later: list[str]) -> list[str]:
    keys = {word.partition("=")[0] for word in later}
    return [*(word for word in earlier if word.partition("=")[0] not in keys), *later]


def work_of(spec: RunSpec, work: Work) -> Work:
    """Return the work of a changed spec, no larger than `work`, which may know the data."""
    tokens, segment = row_of(spec)
    return replace(work, tokens=min(tokens, work.tokens), segment=min(segment, work.segment))
