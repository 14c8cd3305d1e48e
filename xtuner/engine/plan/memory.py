"""The memory of a training, in bytes by class, from sizes alone.

What autograd keeps is counted tensor by tensor, as the modules of `model` and `ops` keep it; each line below names the
tensor. `D` is the width of the model, `F` of its MLP, `q` of all query heads together, `k` of the key heads, `w` the
bytes of a number that is computed with and `s` those of the stream between the layers. Checked against recorded
measurements in tests/engine/test_plan_memory.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from xtuner.checkpoint.kind import KINDS
from xtuner.config.spec import LoraSpec, RunSpec
from xtuner.engine.plan.card import GIB, Card
from xtuner.engine.plan.formats import WIDTH, Formats, choose_formats
from xtuner.engine.plan.shape import Linear, Shape
from xtuner.engine.plan.work import Work

CHUNK_LOGITS = 2**26
"""Logits that exist at a time: `ops.linear_cross_entropy.CHUNK_LOGITS`, which a test holds equal."""
NF4_BYTES = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits: half of one, and an fp32 scale for each 64."""
NF4_DOUBLE_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""With scales quantised too (https://arxiv.org/abs/2305.14314): a byte each, and an fp32 scale for each 256 of them."""
CONTEXT = 0.6 * GIB
"""What the driver holds for a program on a card beside its tensors."""
PROGRAM = 0.6 * GIB
"""What Python and the libraries hold on a CPU beside tensors."""
QUANTISED_MOMENT = 1 + 4 / 256
"""Bytes of a moment in 8 bits, with an fp32 scale for each 256."""
MOMENT_BYTES: dict[str, float] = {
    "adamw": 8,
    "adamw_8bit": 2 * QUANTISED_MOMENT,
    "paged_adamw": 8,
    "paged_adamw_8bit": 2 * QUANTISED_MOMENT,
    "sgd": 4,
}
"""Bytes that an optimiser keeps for a trained weight in fp32."""


@dataclass(frozen=True)
class Memory:
    """Bytes by class."""

    frozen: dict[str, float]
    """Format -> bytes of the weights that are not trained."""
    trained: float
    gradients: float
    optimiser: float
    at_peak: dict[str, float]
    """What is there beside weights and optimiser when the most is: gradients, activations, logits, ..."""
    fixed: float
    """What the driver holds beside tensors, or on a CPU the program."""
    host: float
    """Bytes of host memory that activations are moved to."""
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
        """What must be free."""
        return self.peak + self.fixed


@dataclass(frozen=True)
class Trained:
    """What an adapter adds: linear layers with a low rank, and modules that are trained whole."""

    ranks: dict[Linear, int]
    weights: int
    """All trained weights together."""
    head: int
    """Those of an adapter on the output head."""


def is_trained_whole(spec: RunSpec) -> bool:
    """Whether all weights learn."""
    return spec.model.lora is None and not spec.model.freeze


def find_trained(spec: RunSpec, shape: Shape) -> Trained:
    """Say what of a model learns."""
    lora = spec.model.lora
    if lora is None:
        return Trained({}, 0 if spec.model.freeze else shape.num_parameters, 0)
    ranks = {
        linear: _rank(lora, linear) for linear in shape.linears if not linear.fused and _is_target(lora, linear, shape)
    }
    weights = sum(rank * (linear.outputs + linear.inputs) * linear.count for linear, rank in ranks.items())
    adapted = shape.adapted_head is not None and _is_named(lora, shape.adapted_head, shape)
    head = lora.r * (shape.vocabulary + shape.hidden) if adapted else 0
    weights += head
    weights += shape.embedding * sum("embed" in name or "head" in name for name in lora.modules_to_save)
    return Trained(ranks, weights, head)


def _rank(lora: LoraSpec, linear: Linear) -> int:
    return lora.rank_pattern.get(linear.name, lora.r)


def _is_target(lora: LoraSpec, linear: Linear, shape: Shape) -> bool:
    return _is_named(lora, linear.name, shape)


def _is_named(lora: LoraSpec, name: str, shape: Shape) -> bool:
    """Whether an adapter goes on layers of a name; a regular expression is taken to mean the names that it holds."""
    if lora.targets is None:
        return shape.kind not in KINDS or name in KINDS[shape.kind].targets
    if isinstance(lora.targets, str):
        return lora.targets == "all-linear" or name in lora.targets
    return any(target.rpartition(".")[2] == name for target in lora.targets)


def weigh(spec: RunSpec, shape: Shape, card: Card, work: Work, *, recompute: str | int, compiled: bool) -> Memory:
    """Count the memory of `spec` on `card`, when `recompute` and `compiled` are as given."""
    formats = choose_formats(spec, is_cpu=card.is_cpu, has_bfloat16=card.has_bfloat16)
    trained = find_trained(spec, shape)
    whole = is_trained_whole(spec)
    width, stored = WIDTH[formats.compute], WIDTH[formats.weights]
    weight = stored if whole else 4
    frozen = {} if whole else _frozen(spec, shape, formats)
    learned = trained.weights * weight
    # an optimiser keeps its moments in the format of what it moves
    optimiser = (
        trained.weights * MOMENT_BYTES.get(spec.optim.name, 8) * (weight / 4 if "8bit" not in spec.optim.name else 1)
    )
    tokens = work.tokens
    per_token = sum(kept_by_layer(spec, shape, trained, formats, work, compiled=compiled, is_cpu=card.is_cpu).values())
    stream = stored if stored == 4 else width
    boundary = float(stream * shape.hidden)
    layers, redone = shape.layers, recomputed_layers(recompute, shape.layers)
    one = tokens * per_token
    # casts of trained fp32 weights are kept with the activations of their layer
    casts = sum(linear.size for linear in shape.linears) * width if whole and stored != width else 0.0
    waiting = tokens * boundary * redone
    kept = waiting + (layers - redone) * one
    host = 0.0
    if recompute == "offload" and not card.is_cpu:
        host, kept = waiting, tokens * boundary * min(2, layers)
    inside = tokens * (2 * shape.inner * width + 2 * shape.hidden * stream)  # gradients inside the MLP
    # the last norm: an fp32 copy, the rows that the head reads, their gradient
    ends = tokens * shape.hidden * (4 + 2 * stream)
    scratch = _scratch(spec, shape, work, width)
    held = learned if spec.loop.accumulate > 1 else 0.0
    cast = casts / layers
    moments_of_an_iteration: list[dict[str, float]] = [
        # the loss, when all layers are done
        {
            "gradients": held,
            "activations": kept + ends,
            "logits": _logits(shape, card, work, width, stored, trained, whole=whole),
            "casts": casts,  # autocast holds them until the forward pass ends, recomputed or not
        },
        # the backward pass begins, in the last layer
        {
            "gradients": max(held, shape.embedding * weight if whole else 0.0),
            "activations": kept + ends / 2,
            "layer": inside + (one if redone == layers else 0.0),
            "casts": max(cast, cast * (layers - redone)),
            "scratch": scratch,
        },
        # it ends, in the first layer: all gradients are there but that of the embedding
        {
            "gradients": learned - (shape.embedding * weight if whole and not shape.tied else 0.0),
            "activations": tokens * boundary,
            "layer": inside + one,
            "casts": cast,
            "scratch": scratch,
        },
        {"gradients": learned, "activations": tokens * boundary},
    ]
    return Memory(
        frozen=frozen,
        trained=learned,
        gradients=learned,
        optimiser=optimiser,
        at_peak=max(moments_of_an_iteration, key=lambda moment: sum(moment.values())),
        fixed=PROGRAM if card.is_cpu else CONTEXT,
        host=host,
        per_token=per_token,
        boundary=boundary,
    )


def moment_bytes(optimiser: str, width: int) -> float:
    """Return the bytes that an optimiser keeps of a weight of `width` bytes: moments in the format of the weight, or
    in 8 bits."""
    size = MOMENT_BYTES.get(optimiser, MOMENT_BYTES["adamw"])
    return size if "8bit" in optimiser else size * width / 4


def recomputed_layers(recompute: str | int, layers: int) -> int:
    """Return how many of `layers` are recomputed in the backward pass."""
    if isinstance(recompute, int):
        return min(recompute, layers)
    return 0 if recompute == "none" else layers


def kept_by_layer(
    spec: RunSpec, shape: Shape, trained: Trained, formats: Formats, work: Work, *, compiled: bool, is_cpu: bool
) -> dict[str, float]:
    """Return the bytes of a token that a layer keeps for the backward pass, by what keeps them."""
    width, stored = WIDTH[formats.compute], WIDTH[formats.weights]
    stream = stored if stored == 4 else width
    whole = is_trained_whole(spec)
    hidden, inner = shape.hidden, shape.inner
    queries, keys = shape.heads * shape.head_size, shape.key_heads * shape.head_size
    if not is_cpu and shape.key_heads < shape.heads:
        keys = queries  # the kernels of torch up to 2.11 are given a copy of the keys for each query head
    found = {
        # fp32 copy of the stream, or the stream itself; a compiled norm is computed again from the stream
        "norms": 2.0 * hidden * (stream if compiled else 4),
        # query, key, value and result in the format of products, and the sum of exponentials in fp32
        "attention": (2.0 * queries + 2 * keys) * width + 4 * shape.heads,
        # gate and up, and eager also the activated gate; of an MLP without gate one and the activated one
        "mlp": float(inner * width * ((2 if compiled else 3) if shape.gated else 1)),
    }
    fused = any(linear.place == "attention" and linear.outputs > queries for linear in shape.linears)
    if fused and is_cpu:  # the value is a part of what the fused layer gives, all of which stays for it
        found["attention"] += (queries + keys) * width
    if whole and not compiled:
        found["norms"] += 2.0 * hidden * stream  # normed rows, which the gradient of a norm's weight asks for
    found["inputs"] = sum(_inputs(spec, shape, trained, width, whole, copied=whole and stored != width))
    if spec.model.lora is not None:
        share = spec.model.lora.dropout
        for linear, rank in trained.ranks.items():
            times = linear.count * linear.share / shape.layers
            found["adapters"] = found.get("adapters", 0.0) + times * rank * width
            if share:  # a byte for each input that says whether it was dropped
                found["dropout"] = found.get("dropout", 0.0) + times * linear.inputs
    if spec.model.attention == "eager" or shape.holds_scores:
        # scores, the scores in fp32 and their softmax: of a segment, or of a whole row
        seen = work.tokens if spec.model.attention == "eager" else work.segment
        found["scores"] = float(shape.heads * seen * (2 * width + 4))
    return found


def _inputs(spec: RunSpec, shape: Shape, trained: Trained, width: int, whole: bool, *, copied: bool) -> Iterator[float]:
    """Yield the bytes of a token that the inputs of linear layers take, where a weight behind them learns.

    Layers that read the same rows keep them once, but where each of them casts its own copy: under autocast from an
    fp32 stream, and in PEFT's layer over INT8. What the attention gives is counted there.
    """
    int8 = spec.model.quant is not None and spec.model.quant.bits == 8 and spec.model.quant.type != "fp8"
    seen: dict[str, float] = {}
    for linear in shape.linears:
        if not whole and linear not in trained.ranks:
            continue
        times = linear.count * linear.share / shape.layers
        if copied or int8:
            if linear.place != "attention_out" or int8:
                yield times * linear.inputs * width
        elif linear.place == "mlp_out":
            yield times * linear.inputs * width
        elif linear.place != "attention_out":
            # one norm feeds all of a place; experts read gathered rows of their own
            each = linear.inputs * (max(1.0, times) if linear.share < 1 else 1.0)
            seen[linear.place] = max(seen.get(linear.place, 0.0), each)
    yield from (inputs * width for inputs in seen.values())


def _frozen(spec: RunSpec, shape: Shape, formats: Formats) -> dict[str, float]:
    """Return format -> bytes of the frozen weights: matrices of layers in the format of `model.quant`."""
    stored = WIDTH[formats.weights]
    quant = spec.model.quant
    fused = sum(linear.size for linear in shape.linears if linear.fused)
    matrices = sum(linear.size for linear in shape.linears if not linear.fused)
    rows = sum(linear.outputs * linear.count for linear in shape.linears if not linear.fused)
    others = float(shape.num_parameters - matrices)
    assert others >= fused
    if quant is None:
        return {formats.weights: float(shape.num_parameters * stored)}
    if quant.bits == 4:
        name, size = quant.type.upper(), matrices * (NF4_DOUBLE_BYTES if quant.double else NF4_BYTES)
    else:
        name, size = "FP8" if quant.type == "fp8" else "INT8", matrices + 4.0 * rows
    return {name: size, formats.weights: others * stored}


def _logits(shape: Shape, card: Card, work: Work, width: int, stored: int, trained: Trained, *, whole: bool) -> float:
    """One chunk: logits and their gradient, on a CPU its fp32 twin; a trained head sums its gradient in fp32."""
    rows = min(work.tokens, max(16, CHUNK_LOGITS // shape.vocabulary))
    chunk = rows * shape.vocabulary * (2 * width)
    if card.is_cpu and width < 4:
        chunk += rows * shape.vocabulary * 4
    if not whole:
        return float(chunk + 2 * 4 * trained.head)  # the adapter's gradient, of a chunk and summed
    casts = shape.embedding * width * 2 if stored != width else 0  # the weight, and its gradient before the sum
    return float(chunk + shape.embedding * (4 + stored) + casts)


def _scratch(spec: RunSpec, shape: Shape, work: Work, width: int) -> float:
    """The largest weight while it is multiplied."""
    quant = spec.model.quant
    if quant is None:
        return 0.0
    largest = max((linear for linear in shape.linears if not linear.fused), key=lambda x: x.outputs * x.inputs)
    size = largest.outputs * largest.inputs
    if quant.type == "fp8" and quant.bits == 8:
        # its transpose, and the rows: quantised, and scaled before that
        return float(size + work.tokens * max(largest.outputs, largest.inputs) * (1 + width))
    return float(size * width)
