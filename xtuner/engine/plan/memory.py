"""The memory of a training, in bytes by class, from sizes alone.

What autograd keeps is counted tensor by tensor, as the modules of `model` and `ops` keep it; each line below names the
tensor. `D` is the width of the model, `F` of its MLP, `q` of all query heads together, `k` of the key heads, `w` the
bytes of a number that is computed with and `s` those of the stream between the layers. Checked against recorded
measurements in tests/engine/test_plan_memory.py.
"""

from dataclasses import dataclass

from xtuner.config.spec import RunSpec
from xtuner.engine.plan.card import GIB, Card
from xtuner.engine.plan.formats import WIDTH, Formats, choose_formats
from xtuner.engine.plan.kept import Layer, keep, kept_by_layer, recomputed_layers
from xtuner.engine.plan.shape import Shape
from xtuner.engine.plan.spread import Spread, spread_of, whole_numbers
from xtuner.engine.plan.trained import Trained, find_trained, is_trained_whole
from xtuner.engine.plan.work import Work

CHUNK_LOGITS = 2**26
"""Logits that exist at a time: `ops.linear_cross_entropy.CHUNK_LOGITS`, which a test holds equal."""
TRAINED_CHUNK_LOGITS = 2**28
"""The same where the head is trained."""
HEAD_SLAB = 2**26
"""Numbers of a 4-bit head that are in full at a time: `ops.packed_head.SLAB`, which a test holds equal."""
NF4_BYTES = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits: half of one, and an fp32 scale for each 64."""
NF4_DOUBLE_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""With scales quantised too (https://arxiv.org/abs/2305.14314): a byte each, and an fp32 scale for each 256 of them."""
CONTEXT = 0.6 * GIB
"""What the driver holds for a program on a card beside its tensors."""
PROGRAM = 0.6 * GIB
"""What Python and the libraries hold on a CPU beside tensors."""
SLACK_LAYERS = 3
"""On a CPU the allocator (glibc) holds between tensors about what so many layers keep, or half of all layers where that
is less: from 1.2 to 6.7 layers in 14 probes of models with 3 to 16 layers, whatever is recomputed."""
HEAP_BYTES = 2**25
"""Tensors from this size on go back to the system at once (glibc's largest `M_MMAP_THRESHOLD`)."""
QUANTISED_MOMENT = 1 + 4 / 256
"""Bytes of a moment in 8 bits, with an fp32 scale for each 256."""
MOMENT_BYTES: dict[str, float] = {
    "adamw": 8,
    "adamw_8bit": 2 * QUANTISED_MOMENT,
    "adamw_bf16": 4,
    "paged_adamw": 8,
    "paged_adamw_8bit": 2 * QUANTISED_MOMENT,
    "sgd": 4,
}
"""Bytes that an optimiser keeps for a trained weight in fp32."""
OF_THE_WEIGHT = ("adamw", "sgd")
"""Optimisers whose moments have the format of their weight; those of the others are what they are."""


@dataclass(frozen=True)
class Memory:
    """Bytes by class."""

    frozen: dict[str, float]
    """Format -> bytes of the weights that are not trained, as all others of each card."""
    trained: float
    gradients: float
    """The most that there are at a time."""
    optimiser: float
    paged: float
    """Of the optimiser what moves to host memory as far as the card is full."""
    at_peak: dict[str, float]
    """What is there beside weights and optimiser when the most is: gradients, activations, logits, ..."""
    fixed: float
    """What the driver holds beside tensors, or on a CPU the program."""
    slack: float
    """What the allocator of a CPU holds between tensors."""
    host: float
    """Bytes that wait in host memory: moved activations, an embedding, and what a strategy puts there."""
    per_token: float
    """Bytes that a layer keeps of a token when nothing is recomputed."""
    boundary: float
    """The same when it is recomputed: its input."""

    @property
    def peak(self) -> float:
        """The most that tensors take at one moment; without `fixed`."""
        return sum(self.frozen.values()) + self.trained + self.optimiser + sum(self.at_peak.values())

    @property
    def need(self) -> float:
        """What must be free, for nothing to be moved to the host but what is meant to."""
        return self.peak + self.fixed + self.slack

    @property
    def least(self) -> float:
        """What must be free in any case."""
        return self.need - self.paged


def weigh(spec: RunSpec, shape: Shape, card: Card, work: Work, *, recompute: str | int, compiled: bool) -> Memory:
    """Count the memory of `spec` on `card`, when `recompute` and `compiled` are as given."""
    formats = choose_formats(spec, is_cpu=card.is_cpu, has_bfloat16=card.has_bfloat16)
    spread = spread_of(spec, card.count)
    trained = find_trained(spec, shape)
    whole = is_trained_whole(spec)
    state = count_trained(spec, trained.weights, formats, spread)
    if whole and (spread.gathers or spread.halves):  # layers have the format of products before they compute
        formats = Formats(formats.compute, formats.compute)
    width, stored = WIDTH[formats.compute], WIDTH[formats.weights]
    weight = state.width
    frozen = {} if whole else _frozen(spec, shape, formats, spread)
    if spec.model.quant is not None and spec.model.quant.resident:
        if spec.model.quant.type == "fp8":
            frozen["FP8"] += sum(linear.size for linear in shape.linears if not linear.fused)  # the transposes
        else:
            frozen[formats.weights] += stored * sum(linear.size for linear in trained.ranks)  # a copy in full
    learned, optimiser = state.weights / spread.weights, state.optimiser / spread.optimiser
    tokens = work.tokens
    parts = kept_by_layer(spec, shape, trained, formats, work, compiled=compiled, is_cpu=card.is_cpu)
    stream = stored if stored == 4 else width
    boundary = float(stream * shape.hidden)
    # gradients inside the MLP; compiled code makes all of them, and the activated gate again, before it frees any
    layer = Layer(parts, boundary, float((4 if compiled else 2) * shape.inner * width), compiled)
    layers, redone = shape.layers, recomputed_layers(recompute, shape.layers)
    # casts of trained fp32 weights are kept with the activations of their layer
    casts = sum(linear.size for linear in shape.linears) * width if whole and stored != width else 0.0
    kept = keep(recompute, layers, layer, tokens, shape.inner, is_cpu=card.is_cpu)
    host = kept.host
    if has_host_embedding(spec, shape, card):
        host += shape.embedding * stored
        frozen[formats.weights] -= shape.embedding * stored
    # the last norm: an fp32 copy, the rows that the head reads, their gradient
    ends = tokens * shape.hidden * (4 + 2 * stream)
    scratch = _scratch(spec, shape, work, width)
    embedding = shape.embedding * weight if whole else 0.0
    grown = _gradients(spec, shape, spread, state, embedding, whole=whole, compiled=compiled)
    cast = casts / layers
    beside = _together(spec, shape, trained, spread, whole=whole, width=width if whole else stored, weight=weight)
    moments_of_an_iteration: list[dict[str, float]] = [
        # the loss, when all layers are done
        {
            "gradients": grown.held,
            "activations": kept.card + ends,
            "logits": _logits(shape, card, work, width, stored, trained, whole=whole)
            + _head_in_full(spec, shape, trained, width),
            "casts": casts,  # autocast holds them until the forward pass ends, recomputed or not
        },
        # the backward pass begins, in the last layer
        {
            "gradients": max(grown.held, grown.embedding),
            "activations": kept.card + ends / 2,
            "layer": kept.again,
            "casts": max(cast, cast * (layers - redone)),
            "scratch": scratch,
        },
        # it ends, in the first layer: all gradients are there but that of the embedding
        {
            "gradients": grown.first,
            "layer": kept.work,
            "casts": cast,
            "scratch": scratch,
        },
        {"gradients": grown.end, "activations": tokens * boundary},
    ]
    for moment in moments_of_an_iteration:
        moment |= beside
        if "gradients" in spread.on_host:
            moment["gradients"] = 0.0
    parts_of_run = {"weights": learned + sum(frozen.values()), "gradients": grown.most, "optimiser": optimiser}
    away = {name: size for name, size in parts_of_run.items() if name in spread.on_host}
    if "weights" in away:
        learned, frozen = 0.0, dict.fromkeys(frozen, 0.0)
    optimiser -= away.get("optimiser", 0.0)
    return Memory(
        frozen=frozen,
        trained=learned,
        gradients=0.0 if "gradients" in away else grown.most,
        optimiser=optimiser,
        paged=optimiser if spec.optim.name.startswith("paged") and not card.is_cpu else 0.0,
        at_peak=max(moments_of_an_iteration, key=lambda moment: sum(moment.values())),
        fixed=PROGRAM if card.is_cpu else CONTEXT,
        slack=_slack(layers, tokens * layer.whole, tokens * boundary) if card.is_cpu else 0.0,
        host=host + sum(away.values()),
        per_token=layer.whole,
        boundary=boundary,
    )


@dataclass(frozen=True)
class State:
    """Bytes of what is trained, of all cards together."""

    width: int
    """Bytes of a trained weight."""
    weights: float
    optimiser: float
    """With the fp32 copies of weights that are in 16 bits only for the products."""


@dataclass(frozen=True)
class Gradients:
    """Bytes of gradients on a card."""

    held: float
    """From the iteration before, or from the start."""
    embedding: float
    first: float
    """When the first layer is done."""
    end: float

    @property
    def most(self) -> float:
        """The most that there are at a time."""
        return max(self.first, self.end)


def _gradients(
    spec: RunSpec, shape: Shape, spread: Spread, state: State, embedding: float, *, whole: bool, compiled: bool
) -> Gradients:
    """Count those of all trained weights, of which the embedding's take `embedding` bytes."""
    if spec.optim.in_backward:
        of_layer = _gradients_of_layer(shape, state.weights, embedding, state.width, whole=whole, compiled=compiled)
        tied = embedding if shape.tied else 0.0
        return Gradients(0.0, embedding, tied + of_layer, max(embedding * (2 if shape.tied else 1), of_layer))
    adding = spec.loop.accumulate > 1
    stay = spread.whole_gradients or (spread.added_gradients and adding)
    part = 1 if stay else spread.gradients
    every, embedding = state.weights / part, embedding / part
    # the embedding's come last, but those of a head that is the same weight first; buffers are there all the time
    first = every if shape.tied or spread.whole_gradients else every - embedding
    return Gradients(every if stay or adding else 0.0, embedding, first, every)


def _slack(layers: int, kept: float, row: float) -> float:
    """What the heap of a CPU holds between tensors; a layer keeps `kept` bytes, and its input takes `row`."""
    return min(SLACK_LAYERS, layers / 2) * kept if row < HEAP_BYTES else 0.0


def count_trained(spec: RunSpec, num_weights: int, formats: Formats, spread: Spread) -> State:
    """Count the bytes of `num_weights` trained weights, and of what the optimiser keeps of them."""
    if spread.halves and WIDTH[formats.compute] == 2:
        return State(2, 2.0 * num_weights, num_weights * (4 + moment_bytes(spec.optim.name, 4)))
    width = WIDTH[formats.weights] if is_trained_whole(spec) else 4
    return State(width, float(width * num_weights), num_weights * moment_bytes(spec.optim.name, width))


def _together(
    spec: RunSpec, shape: Shape, trained: Trained, spread: Spread, *, whole: bool, width: int, weight: int
) -> dict[str, float]:
    """What is there beside a card's part: weights that are put together, and buffers for what cards send."""
    found: dict[str, float] = {}
    if spread.gathers:
        packed = spec.model.quant is not None and spread.quantised == 1
        matrices = sum(linear.size for linear in shape.linears if linear.fused or not packed) / shape.layers
        found["together"] = whole_numbers(spread, shape, matrices) * width
        if not spread.live:  # the gradients of a layer before they are divided, and as they are sent
            learned = trained.weights - (shape.embedding * (1 if shape.tied else 2) if whole else 0)
            found["together"] += learned / shape.layers * (weight + 4)
    if spread.messages:
        found["messages"] = spread.messages * width
    return found


def moment_bytes(optimiser: str, width: int) -> float:
    """Return the bytes that an optimiser keeps of a weight of `width` bytes; one of a user's own counts as AdamW."""
    name = optimiser if optimiser in MOMENT_BYTES else "adamw"
    return MOMENT_BYTES[name] * (width / 4 if name in OF_THE_WEIGHT else 1)


def _gradients_of_layer(
    shape: Shape, learned: float, embedding: float, weight: int, *, whole: bool, compiled: bool
) -> float:
    """The gradients that exist together when each weight moves as soon as its own is known: one, or those of a
    compiled layer, whose backward pass is one piece."""
    layer = (learned - embedding * (1 if shape.tied else 2)) / shape.layers
    if compiled or not whole:
        return layer
    return float(max(linear.outputs * linear.inputs for linear in shape.linears) * weight)


def _frozen(spec: RunSpec, shape: Shape, formats: Formats, spread: Spread) -> dict[str, float]:
    """Return format -> bytes of the frozen weights: matrices of layers in the format of `model.quant`."""
    stored = WIDTH[formats.weights]
    quant = spec.model.quant
    fused = sum(linear.size for linear in shape.linears if linear.fused)
    matrices = sum(linear.size for linear in shape.linears if not linear.fused)
    rows = sum(linear.outputs * linear.count for linear in shape.linears if not linear.fused)
    others = float(shape.num_parameters - matrices)
    assert others >= fused
    if quant is None:
        return {formats.weights: float(shape.num_parameters * stored / spread.weights)}
    if quant.bits == 4:
        if quant.head and not shape.tied:
            matrices, others = matrices + shape.embedding, others - shape.embedding
        name, size = quant.type.upper(), matrices * (NF4_DOUBLE_BYTES if quant.double else NF4_BYTES)
    else:
        name, size = "FP8" if quant.type == "fp8" else "INT8", matrices + 4.0 * rows
    return {name: size / spread.quantised, formats.weights: others * stored / spread.weights}


def _logits(shape: Shape, card: Card, work: Work, width: int, stored: int, trained: Trained, *, whole: bool) -> float:
    """One chunk: logits and their gradient, on a CPU its fp32 twin; a trained head sums its gradient in fp32."""
    logits = TRAINED_CHUNK_LOGITS if whole else CHUNK_LOGITS
    rows = min(work.tokens, max(16, logits // shape.vocabulary))
    chunk = rows * shape.vocabulary * (2 * width)
    if card.is_cpu and width < 4:
        chunk += rows * shape.vocabulary * 4
    if not whole:
        return float(chunk + 2 * 4 * trained.head)  # the adapter's gradient, of a chunk and summed
    casts = shape.embedding * width * 2 if stored != width else 0  # the weight, and its gradient before the sum
    return float(chunk + shape.embedding * (4 + stored) + casts)


def has_host_embedding(spec: RunSpec, shape: Shape, card: Card) -> bool:
    """Whether the input embedding is not on the card."""
    return spec.model.host_embedding and not shape.tied and not card.is_cpu


def _head_in_full(spec: RunSpec, shape: Shape, trained: Trained, width: int) -> float:
    """What of a 4-bit head is in full at a time: a slab, or all of it where an adapter is on it."""
    if spec.model.quant is None or not spec.model.quant.head or shape.tied:
        return 0.0
    return float(width * (shape.embedding if trained.head else min(shape.embedding, HEAD_SLAB)))


def _scratch(spec: RunSpec, shape: Shape, work: Work, width: int) -> float:
    """The largest weight while it is multiplied."""
    quant = spec.model.quant
    fp8 = quant is not None and quant.type == "fp8"
    if quant is None or (quant.resident and not fp8):
        return 0.0
    largest = max((linear for linear in shape.linears if not linear.fused), key=lambda x: x.outputs * x.inputs)
    size = largest.outputs * largest.inputs
    if fp8:  # its transpose, and the rows: quantised, and scaled before that
        return float((0 if quant.resident else size) + work.tokens * max(largest.outputs, largest.inputs) * (1 + width))
    return float(size * width)
