"""What a run may keep and what it recomputes, whether it is compiled, and what would make it fit (no torch)."""

import math
from dataclasses import dataclass, replace

from xtuner.config.spec import RunSpec
from xtuner.config.spec_override import override_spec
from xtuner.engine.plan.card import Card
from xtuner.engine.plan.memory import Memory, weigh
from xtuner.engine.plan.shape import Shape
from xtuner.engine.plan.speed import COMPILE_SECONDS, clock
from xtuner.engine.plan.trained import is_trained_whole
from xtuner.engine.plan.work import Work, row_of

CHOICE_MARGIN = 1.06
"""A choice leaves this much free: allocators lose some memory between tensors, and other programs want some."""
FIT_MARGIN = 1.02
"""What is said to fit leaves this much."""
SMALL_RANK = 16
"""What a larger rank of an adapter may be reduced to."""
OF_LEARNING = ("data.max_length", "model.lora")
"""Settings that begin so change what is learned."""
WHOLE_MLP = ("bloom", "gpt2", "opt")
"""Kinds whose MLP `model.tiled_mlp` refuses."""
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

    def fits(recompute: str | int) -> bool:
        memory = weigh(spec, shape, card, work, recompute=recompute, compiled=compiled)
        return memory.need * CHOICE_MARGIN <= card.memory and memory.host <= card.host

    def seconds(recompute: str | int) -> float:
        return clock(spec, shape, card, work, recompute=recompute, compiled=compiled).seconds

    def slower(recompute: str | int) -> str:
        return f"{seconds(recompute) / seconds('none') - 1:.0%}"

    if fits("none"):
        why = f"all activations fit; recomputing them would take {slower('layers')} longer"
        return Chosen("none", compiled, why, why_compiled)
    fitting = [way for way in list_ways(spec, shape, card) if fits(way)]
    if fitting:
        best = min(fitting, key=seconds)
        return Chosen(best, compiled, f"the fastest that fits; {slower(best)} slower than none", why_compiled)
    memory = weigh(spec, shape, card, work, recompute="layers", compiled=compiled)
    why = "moments must go to the host all the same" if memory.least <= card.memory else "which does not suffice"
    return Chosen("layers", compiled, why, why_compiled)


def list_ways(spec: RunSpec, shape: Shape, card: Card) -> list[str | int]:
    """Return the ways of `model.recompute` that this model and device have; the same list on every rank."""
    ways: list[str | int] = ["none", *range(1, shape.layers), "layers"]
    plain = any(linear.place == "mlp_out" for linear in shape.linears) and all(x.share == 1 for x in shape.linears)
    plain = plain and shape.kind not in WHOLE_MLP and not _is_zero3(spec)
    if plain:
        ways.append("mlp")
    if not card.is_cpu:
        ways += ["offload", "offload_layers"] if plain else ["offload_layers"]
    return ways


def _is_zero3(spec: RunSpec) -> bool:
    """Whether tiles are refused, as `strategy.zero_config` says why."""
    config = spec.strategy.options.get("config") if spec.strategy.name == "deepspeed" else None
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    return isinstance(zero, dict) and str(zero.get("stage")) == "3"


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


def list_changes(spec: RunSpec, *, is_cpu: bool, tied: bool = True) -> list[list[str]]:
    """Return settings that save memory, from those that cost nothing to those that change what is learned; `tied`: the
    output head is the embedding."""
    changes: list[list[str]] = []
    loop, model, optim = spec.loop, spec.model, spec.optim
    if loop.batch_size > 1:
        changes.append(["loop.batch_size=1", f"loop.accumulate={loop.accumulate * loop.batch_size}"])
    if model.recompute == "none" or isinstance(model.recompute, int):
        changes.append(["model.recompute=layers"])
    if model.recompute in ("mlp", "layers") and not is_cpu:  # what they keep may wait on the host
        changes.append(["model.recompute=offload" if model.recompute == "mlp" else "model.recompute=offload_layers"])
    if spec.strategy.name in ("fsdp", "deepspeed"):
        pass  # they divide moments among cards, and know torch's optimisers alone
    elif is_trained_whole(spec) and not is_cpu:  # bytes of weight, gradient and moments: 16, then 8, then 6
        stored, at_once = ["optim.name=adamw_bf16", "model.dtype=bfloat16"], ["optim.in_backward=true"]
        at_once += ["optim.max_norm=none"] if optim.max_norm is not None else []
        alone = spec.strategy.name in ("auto", "single") and loop.batch_size == loop.accumulate == 1
        less = optim.name != "sgd" and (optim.name, model.dtype) != ("adamw_bf16", "bfloat16")
        soon = alone and not loop.skip_spikes and not optim.in_backward
        changes += [stored] * less + [at_once] * soon + [[*stored, *at_once]] * (less and soon)
    elif "8bit" not in optim.name and optim.name != "sgd":
        changes.append(["optim.name=paged_adamw_8bit"])
    if model.lora is not None and model.quant is None:
        changes.append(["model.quant.bits=4"])
    if not tied and not is_cpu:
        changes += _move_ends(spec)
    if model.lora is not None and model.lora.r > SMALL_RANK:  # alpha along with it, so that the adapter weighs the same
        changes.append(
            [f"model.lora.r={SMALL_RANK}", f"model.lora.alpha={model.lora.alpha * SMALL_RANK / model.lora.r:g}"]
        )
    length = spec.data.max_length // 2
    while length >= SHORTEST:
        words = [f"data.max_length={length}"]
        changes.append([*words, f"data.pack_length={length}"] if spec.data.pack_length else words)
        length //= 2
    if is_trained_whole(spec):
        changes += [["model.lora.r=64"], ["model.lora.r=64", "model.quant.bits=4"]]
    return changes


def _move_ends(spec: RunSpec) -> list[list[str]]:
    """Return the settings that take the embedding off the card, and the head to 4 bits, where neither is trained."""
    model, quant = spec.model, spec.model.quant
    if model.lora is None or model.lora.modules_to_save or model.resize_vocab:
        return []
    changes: list[list[str]] = []
    if not model.host_embedding and spec.strategy.name not in ("fsdp", "deepspeed"):
        changes.append(["model.host_embedding=true"])
    if quant is None or (quant.bits == 4 and not quant.head):
        changes.append(["model.quant.head=true"])
    if quant is not None and quant.bits == 4 and not quant.double:
        changes.append(["model.quant.double=true"])
    return changes


def find_change(spec: RunSpec, shape: Shape, card: Card, work: Work) -> tuple[list[str], Memory] | None:
    """Return the settings that make a run fit on `card`, and what it then needs. None: nothing does.

    One setting if it suffices, else several; none that changes what is learned where others suffice, and none that is
    not needed.
    """
    changes = list_changes(spec, is_cpu=card.is_cpu, tied=shape.tied)
    free = [words for words in changes if not words[0].startswith(OF_LEARNING)]
    costly = [words for words in changes if words[0].startswith(OF_LEARNING)]

    def fitting(groups: list[list[str]]) -> Memory | None:
        changed = override_spec(spec, _merge(groups))
        memory = weigh_chosen(changed, shape, card, work_of(changed, work))
        return memory if fits(memory, card) else None

    tries = [[words] for words in free]
    tries += [free[:count] for count in range(2, len(free) + 1)]
    tries += [[words] for words in costly if not free]
    tries += [free + costly[:count] for count in range(1, len(costly) + 1)]
    found = next((groups for groups in tries if fitting(groups)), None)
    if found is None:
        return None
    for words in reversed(found[:-1]):  # those that cost most are left out first
        fewer = [group for group in found if group is not words]
        found = fewer if fitting(fewer) else found
    memory = fitting(found)
    assert memory is not None
    return _merge(found), memory


def _merge(groups: list[list[str]]) -> list[str]:
    """Put settings together; of one key the last counts."""
    values = {word.partition("=")[0]: word for words in groups for word in words}
    return list(values.values())


def work_of(spec: RunSpec, work: Work) -> Work:
    """Return the work of a changed spec, no larger than `work`, which may know the data."""
    tokens, segment = row_of(spec)
    return replace(work, tokens=min(tokens, work.tokens), segment=min(segment, work.segment))
