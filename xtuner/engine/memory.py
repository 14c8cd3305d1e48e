"""Memory and disk: what a checkpoint will take, and what to change when the memory was not enough."""

from collections.abc import Iterable

from torch import nn

from xtuner.config.spec import RunSpec
from xtuner.engine.plan.advice import change, list_changes, work_of
from xtuner.engine.plan.choose import weigh_chosen
from xtuner.engine.plan.memory import moment_bytes
from xtuner.engine.plan.plan import Plan
from xtuner.engine.plan.render import render_classes, say_change

WORTHWHILE = 0.92
"""A change is advised if it needs no more than this share of what was needed."""
SMALLER = "Use a smaller model."


def checkpoint_bytes(trained: Iterable[nn.Parameter], spec: RunSpec, *, float32: bool = False) -> int:
    """Estimate the size of a checkpoint: trained weights, and what the optimiser keeps of each; `float32`: in that
    format, whatever they are in now. Weights that are spread over cards already have no size."""
    total = 0.0
    for parameter in trained:
        width = 4 if float32 else parameter.element_size()
        kept = moment_bytes(spec.optim.name, width) if spec.checkpoint.optimizer else 0
        total += parameter.numel() * (width + kept)
    return round(total)


def advise(spec: RunSpec, plan: Plan | None = None) -> str:
    """Say what to type so that less memory is needed: the cheapest change that is left.

    With a `plan`, what was held by class comes first; then what makes it fit if by the plan it
    did not, else a change that saves a good part.
    """
    if plan is None:
        changes = list_changes(spec, is_cpu=True)
        return f"Add {' '.join(changes[0])}" if changes else SMALLER
    spec = plan.resolved()
    held = f"By the plan it holds {render_classes(plan)} GiB."
    if not plan.fits and plan.change is not None:
        return f"{held} {say_change(plan)}"
    float16 = plan.formats.compute == "float16"
    is_cpu, tied, cards = plan.card.is_cpu, plan.shape.tied, plan.card.count
    for words in list_changes(spec, is_cpu=is_cpu, tied=tied, cards=cards, float16=float16):
        changed = change(spec, plan.shape, plan.card, words)
        if changed is None:
            continue
        memory = weigh_chosen(changed, plan.shape, plan.card, work_of(changed, plan.work))
        if memory.need <= WORTHWHILE * plan.memory.need:
            share = 1 - memory.need / plan.memory.need
            return f"{held} Add {' '.join(words)}, which takes {share:.0%} less."
    return f"{held} {SMALLER}"
