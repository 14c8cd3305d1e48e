"""How long an iteration takes, from operations and bytes moved."""

from dataclasses import dataclass

from xtuner.config.spec import RunSpec
from xtuner.engine.plan.card import Card
from xtuner.engine.plan.formats import choose_formats
from xtuner.engine.plan.memory import (
    find_trained,
    is_trained_whole,
    kept_by_layer,
    recomputed_layers,
)
from xtuner.engine.plan.shape import Shape
from xtuner.engine.plan.work import Work

PASSES = {False: 18.0, True: 11.5}
"""How often the operations between products move what a layer keeps, forward and backward; False: one by one, True:
compiled. From the H200 rows in tests/engine/test_plan_memory.py."""
FORWARD_SHARE = 0.35
"""Of these, what the forward pass makes; a recomputed layer makes it again."""
DEQUANTISE_BYTES = 2.5
"""Bytes moved for each weight that is dequantised, which is done twice, and three times when recomputed."""
DEQUANTISE_SHARE = 0.4
"""Share of the bandwidth that the dequantisation reaches."""
STEP_BYTES = 28
"""Bytes that AdamW and the clipping of gradients move for a trained fp32 weight."""
LAUNCHES = {False: 2.0e-3, True: 0.8e-3}
"""Seconds that a layer of a card takes at least, forward and backward: its kernels must be started one by one."""
HOST_BANDWIDTH = 25e9
"""Bytes a second between a card and pinned host memory."""
COMPILE_SECONDS = 40.0
"""What compilation costs at the start of a run."""


@dataclass(frozen=True)
class Speed:
    """Seconds of an iteration, the optimiser's step in its part."""

    products: float
    attention: float
    others: float
    step: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.products + self.attention + self.others + self.step


def clock(spec: RunSpec, shape: Shape, card: Card, work: Work, *, recompute: str | int, compiled: bool) -> Speed:
    """Estimate an iteration of `spec` on `card`.

    A product with a frozen weight is made twice (the result, and the gradient of its input), with a trained one
    three times, and once more in layers that are recomputed.
    """
    formats = choose_formats(spec, is_cpu=card.is_cpu, has_bfloat16=card.has_bfloat16)
    trained = find_trained(spec, shape)
    whole = is_trained_whole(spec)
    tokens, layers = work.tokens, shape.layers
    again = recomputed_layers(recompute, layers) / layers
    times = (3 if whole else 2) + again
    quant = spec.model.quant
    fp8 = quant is not None and quant.bits == 8 and quant.type == "fp8"
    rate = card.fp8 if fp8 and card.fp8 else card.matmul
    inside = 2.0 * tokens * sum(linear.size * linear.share for linear in shape.linears)
    adapters = sum(rank * (x.outputs + x.inputs) * x.count * x.share for x, rank in trained.ranks.items())
    products = inside * times / rate + 2.0 * tokens * adapters * (3 + again) / card.matmul
    products += 2.0 * tokens * shape.embedding * (3 if whole else 2) / card.matmul
    # scores and their use: a token sees half of its segment
    seen = 2.0 * tokens * work.segment * shape.heads * shape.head_size * layers
    attention = seen * (1 + again) / card.attention[0] + 2.5 * seen / card.attention[1]
    parts = kept_by_layer(spec, shape, trained, formats, work, compiled=compiled, is_cpu=card.is_cpu)
    moved = tokens * layers * sum(parts.values()) * PASSES[compiled]
    others = moved * (1 + FORWARD_SHARE * again) / card.bandwidth
    if quant is not None and not fp8:
        weights = sum(linear.size for linear in shape.linears if not linear.fused)
        others += weights * DEQUANTISE_BYTES * (2 + again) / (card.bandwidth * DEQUANTISE_SHARE)
    if not card.is_cpu:
        least = layers * LAUNCHES[compiled] * (1 + FORWARD_SHARE * again)
        others = max(others, least - products - attention)
    if recompute == "offload":
        moved_out = 2.0 * tokens * shape.hidden * 2 * layers / HOST_BANDWIDTH
        others += max(0.0, moved_out - products - attention)
    step = trained.weights * STEP_BYTES / card.bandwidth / spec.loop.accumulate
    return Speed(products, attention, others, step)
