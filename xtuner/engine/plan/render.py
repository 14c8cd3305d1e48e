"""A plan as a page for a terminal, and as a few lines for the log of a run (no torch)."""

import math
from collections.abc import Iterator

from xtuner.config.later import missing_parts
from xtuner.engine.idle import idle_settings
from xtuner.engine.plan.card import GIB
from xtuner.engine.plan.kept import recomputed_layers
from xtuner.engine.plan.memory import Memory
from xtuner.engine.plan.plan import Plan
from xtuner.engine.plan.shape import describe_shape
from xtuner.engine.plan.spread import spread_of
from xtuner.engine.plan.trained import is_trained_whole
from xtuner.engine.plan.work import sequence_parts

TITLES = {
    "gradients": "gradients",
    "activations": "activations",
    "layer": "the layer at work",
    "logits": "a chunk of logits",
    "casts": "cast weights",
    "scratch": "a weight in full",
    "together": "layers put together",
    "messages": "buffers for messages",
}
LEAST_SHOWN = 5e-4


def render_page(plan: Plan, name: str) -> str:
    """Return the whole plan of the run called `name`."""
    head = f"Plan of {name} on {_where(plan)}"
    return "\n".join([head, "", *_about(plan), "", *_memory(plan), "", *_outcome(plan)])


def render_lines(plan: Plan) -> list[str]:
    """Return the plan in a few lines, for the start of a run."""
    memory = plan.memory
    lines = [
        f"Plan: {_gib(memory.need)} GiB of {_gib(plan.card.memory)}{_each(plan)} ({render_classes(plan)}); "
        f"about {_round(plan.tokens_per_second)} tokens/s{_time(plan)}; disk: {_checkpoints(plan)}",
        f"Recompute: {_recompute(plan)}; compile: {_compiled(plan)}",
    ]
    if not plan.fits:
        lines.append(f"The memory may not suffice. {say_change(plan)}")
    return lines


def say_change(plan: Plan) -> str:
    """Say which settings make a plan fit."""
    if plan.change is None and plan.more_cards is not None:
        count, words, memory = plan.more_cards
        return (
            f"It fits on {count} such cards (NPROC_PER_NODE={count}) with: {' '.join(words)} ({_takes(plan, memory)})"
        )
    if plan.change is None:
        return "No setting makes it fit: use a smaller model, or a card with more memory."
    words, memory = plan.change
    return f"It fits with: {' '.join(words)} ({_takes(plan, memory)})"


def _takes(plan: Plan, memory: Memory) -> str:
    if memory.need <= plan.card.memory:
        return f"{_gib(memory.need)} GiB"
    return f"{_gib(memory.least)} GiB, with moments in host memory"


def _where(plan: Plan) -> str:
    rates = f" (speed: {plan.card.rates_of})" if plan.card.rates_of else ""
    many = f"{plan.card.count} {'processes on' if plan.card.is_cpu else 'x'} " if plan.card.count > 1 else ""
    return f"{many}{plan.card.name}{rates}"


def _each(plan: Plan) -> str:
    return " on each" if plan.card.count > 1 else ""


def _about(plan: Plan) -> Iterator[str]:
    spec, shape = plan.spec, plan.shape
    about = "" if shape.is_exact else "about "
    yield f"model   {about}{describe_shape(shape)}"
    yield f"        {shape.source}"
    yield f"learns  {_learns(plan)}"
    rows = "one row" if spec.loop.batch_size == 1 else f"{spec.loop.batch_size} rows"
    steps = f", an optimiser step every {spec.loop.accumulate} iterations" if spec.loop.accumulate > 1 else ""
    parts = sequence_parts(spec)
    card = "" if plan.card.count == 1 else " on each card" if parts == 1 else f" on {parts} cards together"
    yield f"works   on {rows} at a time{card}, {plan.work.tokens:,} tokens at most{_each(plan)}{steps}"
    if words := spread_of(spec, plan.card.count).words:
        yield f"spread  each card holds {words}"
    yield from (f"note    {sentence}" for sentence in _notes(plan))


def _notes(plan: Plan) -> Iterator[str]:
    """Yield what a person who reads the numbers must know beside them."""
    card = plan.card
    yield from idle_settings(plan.spec, card.name, is_cpu=card.is_cpu, has_bfloat16=card.has_bfloat16)
    if plan.spec.model.vision is not None:
        yield "The image encoder is not counted."
    for setting, what in missing_parts(plan.spec):
        yield f"{setting}: this version cannot run {what} yet."


def _learns(plan: Plan) -> str:
    count = f"{plan.trained.weights / 1e6:,.1f} million weights"
    lora = plan.spec.model.lora
    if lora is None:
        return f"all of it, {count}" if is_trained_whole(plan.spec) else "the projector alone"
    stored = next(iter(plan.memory.frozen))
    return f"an adapter (LoRA of rank {lora.r}), {count}; the others stay as they are, in {stored}"


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    rows: list[tuple[str, float, str]] = [
        (f"weights, {name}", size, _stays(plan, name)) for name, size in memory.frozen.items() if size
    ]
    whole, halves = is_trained_whole(plan.spec), spread_of(plan.spec, plan.card.count).halves
    stored = plan.formats.compute if halves else plan.formats.weights if whole else "float32"
    rows.append((f"{'weights' if whole else 'adapter'}, {stored}", memory.trained, ""))
    rows.append((f"optimiser, {plan.spec.optim.name}", memory.optimiser, ""))
    for key, size in memory.at_peak.items():
        rows.append((TITLES[key], size, _note(plan, key, size)))
    rows.append((_fixed(plan), memory.fixed, ""))
    rows.append(("the allocator, beside tensors", memory.slack, ""))
    shown = [row for row in rows if row[1] / GIB >= LEAST_SHOWN or row[2]]
    width = max(len(title) for title, _, _ in shown) + 2
    yield f"memory  {'':<{width}}{'GiB':>6}"
    for title, size, note in shown:
        yield f"        {title:<{width}}{_gib(size):>6}  {note}".rstrip()
    verdict = f"of {_gib(plan.card.memory)}: {_verdict(plan)}"
    yield f"        {'peak':<{width}}{_gib(memory.need):>6}  {verdict}"
    if memory.host:
        unseen = ", if the machine has so much" if math.isinf(plan.card.host) else ""
        free = unseen if memory.host <= plan.card.host else f", and {_gib(plan.card.host)} are free"
        yield f"        and {_gib(memory.host)} GiB of host memory{free}"
    if not plan.fits:
        yield f"        {say_change(plan)}"


def _fixed(plan: Plan) -> str:
    return "the program itself" if plan.card.is_cpu else "CUDA context"


def _verdict(plan: Plan) -> str:
    if not plan.fits:
        return "it does not fit"
    return "it fits" if plan.memory.need <= plan.card.memory else "it fits, with moments in host memory (slowly)"


def _stays(plan: Plan, name: str) -> str:
    """Say why so much is not quantised."""
    fused = plan.spec.model.quant is not None and any(linear.fused for linear in plan.shape.linears)
    return "experts too: they are one weight, which stays as it is" if fused and name == plan.formats.weights else ""


def _note(plan: Plan, key: str, size: float) -> str:
    memory = plan.memory
    if key == "activations":
        redone = "" if plan.chosen.recompute == "none" else f", of a recomputed one {_kb(memory.boundary)}"
        return f"a layer keeps {_kb(memory.per_token)} of a token{redone}"
    if key == "gradients" and size < memory.gradients:
        return f"{_gib(memory.gradients)} later, when activations are gone"
    return ""


def _outcome(plan: Plan) -> Iterator[str]:
    beside = "; what cards send one another is not counted" if plan.card.count > 1 else ""
    each = f"{_duration(plan.speed.seconds)} an iteration"
    yield f"speed   about {_round(plan.tokens_per_second)} tokens/s, {each}{beside}"
    if plan.seconds is None:
        yield "time    depends on how much data there is (not read here)"
    else:
        many = f"{plan.work.iterations:,} iteration{'' if plan.work.iterations == 1 else 's'}"
        about = "" if plan.work.is_exact or plan.spec.loop.max_iters else ", counted from the size of the data"
        yield f"time    about {_duration(plan.seconds)} ({many}{about})"
    yield f"disk    {_disk(plan)}"
    yield f"chosen  recompute: {_recompute(plan)}"
    yield f"        compile: {_compiled(plan)}"


def _disk(plan: Plan) -> str:
    adapter = f", the adapter {_gib(plan.disk.adapter)}" if plan.disk.adapter else ""
    return f"{_checkpoints(plan)}{adapter}; as one model for others {_gib(plan.disk.merged)}"


def _checkpoints(plan: Plan) -> str:
    disk = plan.disk
    count = "every checkpoint" if disk.count is None else f"{disk.count} checkpoint{'s' if disk.count != 1 else ''}"
    return f"{count} of {_gib(disk.checkpoint)} GiB"


def _recompute(plan: Plan) -> str:
    layers, chosen = plan.shape.layers, plan.chosen
    words = {
        "none": "nothing",
        "mlp": f"the MLPs of all {layers} layers",
        "layers": f"all {layers} layers",
        "offload": f"the MLPs of all {layers} layers, the rest waits on the host",
        "offload_layers": f"all {layers} layers, their inputs wait on the host",
        "offload_groups": f"all {layers} layers, of which the inputs of every fourth wait on the host",
    }
    said = words.get(str(chosen.recompute), f"{recomputed_layers(chosen.recompute, layers)} of {layers} layers")
    return f"{said} ({chosen.why_recompute or 'as asked for'})"


def _compiled(plan: Plan) -> str:
    said = "yes" if plan.chosen.compiled else "no"
    return f"{said} ({plan.chosen.why_compiled or 'as asked for'})"


def render_classes(plan: Plan) -> str:
    """Return the largest classes of memory in GiB, in a line."""
    memory = plan.memory
    parts = {
        "weights": sum(memory.frozen.values()) + memory.trained,
        "optimiser": memory.optimiser,
        **{TITLES[title]: size for title, size in memory.at_peak.items()},
        _fixed(plan): memory.fixed,
        "the allocator": memory.slack,
    }
    largest = [(title, size) for title, size in parts.items() if size / GIB >= 0.05]
    return ", ".join(f"{title} {_gib(size)}" for title, size in largest)


def _time(plan: Plan) -> str:
    return "" if plan.seconds is None else f", {_duration(plan.seconds)} in all"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size < 99.95 * GIB else f"{size / GIB:.1f}"


def _kb(size: float) -> str:
    return f"{size / 1000:,.0f} kB"


def _round(value: float) -> str:
    digits = max(0, len(str(int(value))) - 2)
    return f"{round(value / 10**digits) * 10**digits:,}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
