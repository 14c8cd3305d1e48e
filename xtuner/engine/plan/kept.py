"""What layers keep for the backward pass, in bytes, and where it waits.

Counted tensor by tensor, as the modules of `model` and `ops` keep it; each line names the tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from xtuner.config.spec import RunSpec
from xtuner.engine.plan.formats import WIDTH, Formats
from xtuner.engine.plan.shape import Place, Shape
from xtuner.engine.plan.trained import Trained, is_trained_whole
from xtuner.engine.plan.work import Work

TILE_NUMBERS = 2**26
"""Numbers of the widest activation of a tile: `model.tiled_mlp.TILE_NUMBERS`, which a test holds equal."""
WAY_ACTIVATIONS = 4
"""How many inputs of layers are between card and host at a time: `model.recompute.WAY_ACTIVATIONS`, which a test holds
equal."""
WAY_INPUTS = 1
"""The same where inputs alone are moved, beside the one in use: `model.recompute.WAY_INPUTS`."""

GROUP = 4
"""Layers of a group: `model.layer_groups.GROUP`, which a test holds equal."""
TILED = ("mlp", "offload", "offload_groups")
"""Ways of `model.recompute` whose MLPs run in tiles."""

ATTENTION_SHARE = 4 / 7
"""Of the low-rank products of a layer, those that are not in its MLP."""


@dataclass(frozen=True)
class Kept:
    """Bytes of activations."""

    card: float
    """When the forward pass is over."""
    host: float
    again: float
    """What the last layer makes again, before the others have gone."""
    work: float
    """What a layer has that runs backward, and what its MLP makes there."""


@dataclass(frozen=True)
class Layer:
    """What a layer has of a token, in bytes."""

    parts: dict[str, float]
    """What it keeps when nothing is recomputed, by `kept_by_layer`."""
    boundary: float
    """Its input."""
    inside: float
    """Gradients in its MLP while that runs backward."""
    compiled: bool

    @property
    def whole(self) -> float:
        """All that it keeps."""
        return sum(self.parts.values())

    @property
    def mlp(self) -> float:
        """Of these, what the MLP does."""
        return self.parts["mlp"] + self.parts["wide"]

    @property
    def beside(self) -> float:
        """What it keeps when its MLP is made again: compiled code makes norms again, too."""
        rows = self.boundary  # what the MLP reads
        if self.compiled:
            return self.boundary + self.parts["attention"] + rows
        return self.whole - self.mlp - self.low_rank + (0.0 if self.parts["inputs"] else rows)

    @property
    def low_rank(self) -> float:
        """What adapters keep, which is too small to be moved; those of the MLP are made again."""
        return self.parts.get("adapters", 0.0)


def keep(recompute: str | int, layers: int, layer: Layer, tokens: int, inner: int, *, is_cpu: bool) -> Kept:
    """Say what `layers` layers keep of `tokens` tokens; `inner` is the width of the MLP.

    One branch for each way of `model.recompute`.
    """
    streams = 2 * layer.boundary
    tile = min(tokens, max(1, TILE_NUMBERS // inner))
    if recompute == "offload_groups":
        waiting = tokens * layer.boundary * -(-layers // GROUP)
        on_way = 0.0 if is_cpu else tokens * layer.boundary * min(1 + WAY_INPUTS, -(-layers // GROUP))
        group = tokens * layer.boundary * min(GROUP, layers)  # the inputs of its layers
        work = group + tokens * (layer.beside + layer.low_rank + streams) + tile * (layer.mlp + layer.inside)
        return Kept(waiting if is_cpu else on_way, 0.0 if is_cpu else waiting, work, work + on_way)
    if recompute in ("mlp", "offload"):
        again = tile * (layer.mlp + layer.inside)
        beside = tokens * layer.beside
        stay = layers * tokens * layer.low_rank * ATTENTION_SHARE
        work = beside + tokens * streams + again
        if recompute == "mlp" or is_cpu:
            return Kept(layers * beside + stay, 0.0, tokens * streams + again, work)
        on_way = min(WAY_ACTIVATIONS * tokens * layer.boundary, layers * beside)
        return Kept(on_way + stay, layers * beside, beside + tokens * streams + again, work + on_way)
    redone = recomputed_layers(recompute, layers)
    inside = tokens * (layer.inside + streams)
    waiting = tokens * layer.boundary * redone
    again = inside + (tokens * layer.whole if redone == layers else 0.0)
    work = inside + tokens * (layer.whole + layer.boundary)
    if recompute == "offload_layers" and not is_cpu:
        on_way = tokens * layer.boundary * min(1 + WAY_INPUTS, layers)
        return Kept(on_way, waiting, again, work)
    return Kept(waiting + (layers - redone) * tokens * layer.whole, 0.0, again, work)


def recomputed_layers(recompute: str | int, layers: int) -> int:
    """Return how many of `layers` are recomputed in the backward pass, as a whole."""
    if isinstance(recompute, int):
        return min(recompute, layers)
    return layers if recompute in ("layers", "offload_layers", "offload_groups") else 0


def passes_again(recompute: str | int, layers: int) -> float:
    """Return how often the backward pass runs the layers forward, beside MLPs in tiles; not all of them is a fraction.

    A group runs for the inputs of its layers, the last of which is not needed for that.
    """
    again = recomputed_layers(recompute, layers) / layers
    return again + (1 - -(-layers // GROUP) / layers) if recompute == "offload_groups" else again


def kept_by_layer(
    spec: RunSpec, shape: Shape, trained: Trained, formats: Formats, work: Work, *, compiled: bool, is_cpu: bool
) -> dict[str, float]:
    """Return the bytes of a token that a layer keeps for the backward pass, by what keeps them."""
    width, stored = WIDTH[formats.compute], WIDTH[formats.weights]
    stream = stored if stored == 4 else width
    whole = is_trained_whole(spec)
    hidden, inner = shape.hidden, shape.inner
    queries, keys = shape.heads * shape.head_size, shape.key_heads * shape.head_size
    if not is_cpu and shape.key_heads < shape.heads and not work.alike:
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
    if is_cpu and not work.alike:  # the results of the segments, and the row that they are put together to
        found["attention"] += queries * width
    if whole and not compiled:
        found["norms"] += 2.0 * hidden * stream  # normed rows, which the gradient of a norm's weight asks for
    inputs = list(_inputs(spec, shape, trained, width, whole, copied=whole and stored != width))
    found["inputs"] = sum(size for place, size in inputs if place != "mlp_out")
    found["wide"] = sum(size for place, size in inputs if place == "mlp_out")
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


def _inputs(
    spec: RunSpec, shape: Shape, trained: Trained, width: int, whole: bool, *, copied: bool
) -> Iterator[tuple[Place, float]]:
    """Yield the bytes of a token that the inputs of linear layers take, by place, where a weight behind them learns.

    Layers that read the same rows keep them once, but where each of them casts its own copy: under autocast from an
    fp32 stream. What the attention gives is counted there.
    """
    seen: dict[Place, float] = {}
    for linear in shape.linears:
        if not whole and linear not in trained.ranks:
            continue
        times = linear.count * linear.share / shape.layers
        if copied:
            if linear.place != "attention_out":
                yield linear.place, times * linear.inputs * width
        elif linear.place == "mlp_out":
            yield linear.place, times * linear.inputs * width
        elif linear.place != "attention_out":
            # one norm feeds all of a place; experts read gathered rows of their own
            each = linear.inputs * (max(1.0, times) if linear.share < 1 else 1.0)
            seen[linear.place] = max(seen.get(linear.place, 0.0), each)
    yield from ((place, inputs * width) for place, inputs in seen.items())
