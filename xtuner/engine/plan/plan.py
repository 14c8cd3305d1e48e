"""A plan: everything that is known of a run before it begins (no torch)."""

from dataclasses import dataclass
from functools import cached_property

from xtuner.config.spec import RunSpec
from xtuner.engine.plan.advice import find_change, find_more_cards
from xtuner.engine.plan.card import Card
from xtuner.engine.plan.choose import Chosen, choose, fits
from xtuner.engine.plan.formats import WIDTH, Formats, choose_formats
from xtuner.engine.plan.memory import Memory, count_trained, weigh
from xtuner.engine.plan.shape import Shape
from xtuner.engine.plan.speed import COMPILE_SECONDS, Speed, clock
from xtuner.engine.plan.spread import spread_of
from xtuner.engine.plan.trained import Trained, find_trained
from xtuner.engine.plan.work import Work


@dataclass(frozen=True)
class Disk:
    """Bytes on the disk."""

    checkpoint: float
    count: int | None
    """Checkpoints that are kept; None: all, and nobody knows how many these are."""
    adapter: float
    """What is exported at the end; 0 when all weights are trained."""
    merged: float
    """One model of it for other programs, if asked for."""


@dataclass(frozen=True)
class Plan:
    """A spec, where it runs, and what follows."""

    spec: RunSpec
    shape: Shape
    card: Card
    work: Work
    chosen: Chosen
    formats: Formats
    trained: Trained
    memory: Memory
    speed: Speed
    disk: Disk

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return fits(self.memory, self.card)

    @property
    def tokens_per_second(self) -> float:
        """Of full rows, on all cards together."""
        return self.card.count * self.work.tokens / self.speed.seconds

    @property
    def seconds(self) -> float | None:
        """Of all iterations, and of compilation; None if nobody knows their number."""
        if self.work.iterations is None:
            return None
        return self.work.iterations * self.speed.seconds + (COMPILE_SECONDS if self.chosen.compiled else 0)

    @cached_property
    def change(self) -> tuple[list[str], Memory] | None:
        """The settings that would make it fit, and what it then needs."""
        return find_change(self.spec, self.shape, self.card, self.work)

    @cached_property
    def more_cards(self) -> tuple[int, list[str], Memory] | None:
        """How many such cards hold it together, the settings for that, and what each then needs."""
        return find_more_cards(self.spec, self.shape, self.card, self.work)

    def resolved(self) -> RunSpec:
        """Return the spec with what was left open decided."""
        update = {"recompute": self.chosen.recompute, "compile": self.chosen.compiled}
        return self.spec.model_copy(update={"model": self.spec.model.model_copy(update=update)})


def make_plan(
    spec: RunSpec, shape: Shape, card: Card, work: Work, *, can_compile: bool = True, chosen: Chosen | None = None
) -> Plan:
    """Work out everything for a spec on a card; `chosen` where that is settled."""
    chosen = chosen or choose(spec, shape, card, work, can_compile=can_compile)
    memory = weigh(spec, shape, card, work, recompute=chosen.recompute, compiled=chosen.compiled)
    return Plan(
        spec=spec,
        shape=shape,
        card=card,
        work=work,
        chosen=chosen,
        formats=choose_formats(spec, is_cpu=card.is_cpu, has_bfloat16=card.has_bfloat16),
        trained=find_trained(spec, shape),
        memory=memory,
        speed=clock(spec, shape, card, work, recompute=chosen.recompute, compiled=chosen.compiled),
        disk=_disk(spec, shape, card, work),
    )


def _disk(spec: RunSpec, shape: Shape, card: Card, work: Work) -> Disk:
    settings = spec.checkpoint
    formats = choose_formats(spec, is_cpu=card.is_cpu, has_bfloat16=card.has_bfloat16)
    state = count_trained(spec, find_trained(spec, shape).weights, formats, spread_of(spec, card.count))
    size = state.weights + (state.optimiser if settings.optimizer else 0)
    count = settings.keep
    if settings.every is None:
        count = 1 if settings.last else 0
    elif work.iterations is not None and not settings.by_epoch:
        made = -(-work.iterations // settings.every)
        count = made if count is None else min(count, made)
    if settings.best is not None and count is not None:
        count += 1
    adapter = state.weights if spec.model.lora is not None else 0.0
    return Disk(size, count, adapter, float(shape.num_parameters * WIDTH["bfloat16"]))
