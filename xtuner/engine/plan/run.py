"""The plan of a run that is about to begin: its data is read, its device is here."""

import math
from dataclasses import replace

import numpy as np
import torch

from xtuner.config.spec import RunSpec
from xtuner.engine.idle import can_compile
from xtuner.engine.plan.choose import Chosen, list_ways
from xtuner.engine.plan.memory import weigh
from xtuner.engine.plan.plan import Plan, make_plan
from xtuner.engine.plan.present import read_card, share_host
from xtuner.engine.plan.render import render_lines
from xtuner.engine.plan.shape import load_shape
from xtuner.engine.plan.work import Work, sequence_parts
from xtuner.engine.strategy.world import World
from xtuner.errors import UserError
from xtuner.log import LOGGER


def plan_run(spec: RunSpec, device: torch.device, sizes: np.ndarray, num_iters: int, world: World) -> Plan | None:
    """Decide what the spec leaves open and say what the run will take; None if the model's sizes are not known.

    `sizes` (P,) are the tokens of the packs. With several ranks all recompute the same, as the tightest one must: a
    strategy that gathers weights layer by layer would wait for ever otherwise.
    """
    largest = np.sort(sizes)[-spec.loop.batch_size :]
    tokens = math.ceil(int(largest.sum()) / sequence_parts(spec))
    work = Work(tokens, min(spec.data.max_length, int(largest[-1])), num_iters, is_exact=True)
    try:
        shape = load_shape(spec.model.path)
    except UserError as error:
        LOGGER.info("No plan: %s", error.what)
        return None
    card = share_host(replace(read_card(device), count=world.size), world.local_size)
    plan = make_plan(spec, shape, card, work, can_compile=can_compile())
    if world.size > 1 and spec.model.recompute == "auto":
        plan = _agree(plan, world)
    for line in render_lines(plan):
        LOGGER.info(line)
    return plan


def _agree(plan: Plan, world: World) -> Plan:
    """Take what the tightest rank has chosen, of the ways in the order of what they need."""
    spec, shape, card, work, chosen = plan.spec, plan.shape, plan.card, plan.work, plan.chosen

    def need(way: str | int) -> float:
        return weigh(spec, shape, card, work, recompute=way, compiled=chosen.compiled).need

    ways = sorted(list_ways(spec, shape, card), key=need, reverse=True)
    code = ways.index(chosen.recompute)
    agreed = world.agree(code)
    if agreed == code:
        return plan
    settled = Chosen(ways[agreed], chosen.compiled, "another rank has less memory")
    return make_plan(spec, shape, card, work, chosen=settled)
