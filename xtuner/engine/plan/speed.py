"""How long an iteration takes, from operations and bytes moved."""

from dataclasses import dataclass

from xtuner.config.spec import RunSpec
from xtuner.engine.plan.card import Card
from xtuner.engine.plan.formats import WIDTH, choose_formats
from xtuner.engine.plan.kept import TILE_NUMBERS, TILED, Layer, keep, kept_by_layer, passes_again
from xtuner.engine.plan.memory import moment_bytes
from xtuner.engine.plan.shape import Shape
from xtuner.engine.plan.spread import spread_of
from xtuner.engine.plan.trained import find_trained, is_trained_whole
from xtuner.engine.plan.work import Work

PASSES = {False: 18.0, True: 11.5}
"""How often the operations between products move what a layer keeps, forward and backward; False: one by one, True:
compiled. From the H200 rows in benchmarks/results, which tests/engine/test_plan_recorded.py holds them to."""
FORWARD_SHARE = 0.35
"""Of these, what the forward pass makes; a recomputed layer makes it again."""
DEQUANTISE_BYTES = 2.5
"""Bytes moved for each weight that is dequantised, which is done twice, and three times when recomputed."""
DEQUANTISE_SHARE = 0.8
"""Share of the bandwidth that the dequantisation reaches: 3.5 of 4.3 TB/s on an H200."""
FILL = 512 / 757e12
"""Rows, for each FLOP/s of a card, at which products reach half of their rate: 512 rows on an H200."""
FP8_ROW_BYTES = 3
"""Bytes moved to quantise a number of the rows that are multiplied."""
FP8_WEIGHT_BYTES = 2
"""Bytes moved for each weight, whose transpose is written for the backward pass."""
LAUNCHES = {False: 2.0e-3, True: 0.8e-3}
"""Seconds that a layer of a card takes at least, forward and backward: its kernels must be started one by one."""
OVERLAP = 0.65
"""Share of the forward pass that copies to the host hide behind."""
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
    again = passes_again(recompute, layers)
    tiled = recompute in TILED
    times = (3 if whole else 2) + again
    quant = spec.model.quant
    fp8 = quant is not None and quant.bits == 8 and quant.type == "fp8"
    filled = tokens / (tokens + FILL * card.matmul)
    matmul = card.matmul * filled
    rate = card.fp8 * filled if fp8 and card.fp8 else matmul
    inside = 2.0 * tokens * sum(linear.size * linear.share for linear in shape.linears)
    adapters = sum(rank * (x.outputs + x.inputs) * x.count * x.share for x, rank in trained.ranks.items())
    products = inside * times / rate + 2.0 * tokens * adapters * (3 + again) / matmul
    if tiled:  # the MLP has fewer rows at a time, and all of it but its last product is made again
        tile = min(tokens, max(1, TILE_NUMBERS // shape.inner))
        slower = (tile + FILL * card.matmul) / tile * filled
        first, last = (sum(x.size for x in shape.linears if x.place == place) for place in ("mlp", "mlp_out"))
        products += 2.0 * tokens * (first * slower + (first + last) * times * (slower - 1)) / rate
    products += 2.0 * tokens * shape.embedding * (3 if whole else 2) / matmul
    # scores and their use: a token sees half of its segment
    seen = 2.0 * tokens * work.segment * shape.heads * shape.head_size * layers
    forward, backward = card.attention_alike if work.alike else card.attention
    attention = seen * (1 + again) / forward + 2.5 * seen / backward
    parts = kept_by_layer(spec, shape, trained, formats, work, compiled=compiled, is_cpu=card.is_cpu)
    moved = tokens * layers * sum(parts.values()) * PASSES[compiled]
    mlp = (parts["mlp"] + parts["wide"]) / sum(parts.values())
    others = moved * (1 + FORWARD_SHARE * (again + (mlp if tiled else 0))) / card.bandwidth
    if quant is not None and not fp8 and not quant.resident:
        weights = sum(linear.size for linear in shape.linears if not linear.fused)
        tiles = -(-tokens // tile) if tiled else 1
        others += weights * DEQUANTISE_BYTES * (2 * tiles + again) / (card.bandwidth * DEQUANTISE_SHARE)
    if quant is not None and fp8:
        rows = sum((x.inputs * (1 + again) + x.outputs) * x.count * x.share for x in shape.linears)
        weights = 0 if quant.resident else sum(linear.size for linear in shape.linears if not linear.fused)
        others += (tokens * rows * FP8_ROW_BYTES + weights * FP8_WEIGHT_BYTES) / card.bandwidth
    if not card.is_cpu:
        least = layers * LAUNCHES[compiled] * (1 + FORWARD_SHARE * again)
        others = max(others, least - products - attention)
    if recompute in ("offload", "offload_layers", "offload_groups"):
        layer = Layer(parts, 2.0 * shape.hidden, 0.0, compiled)
        gone = keep(recompute, layers, layer, tokens, shape.inner, is_cpu=card.is_cpu).host
        forward_pass = products / (times + (0.5 if tiled else 0)) + seen / forward + FORWARD_SHARE * others
        others += max(0.0, gone / card.host_bandwidth - OVERLAP * forward_pass)
    # a weight is read and written, its gradient read, its moments read and written
    width = WIDTH[formats.weights] if whole else 4
    step_bytes = trained.weights * (3 * width + 2 * moment_bytes(spec.optim.name, width))
    step = step_bytes / spread_of(spec, card.count).optimiser / card.bandwidth / spec.loop.accumulate
    return Speed(products, attention, others, step)
