"""What of a model learns, by the names and sizes of its layers."""

from dataclasses import dataclass

from xtuner.checkpoint.kind import KINDS
from xtuner.config.spec import LoraSpec, RunSpec
from xtuner.engine.plan.shape import Linear, Shape


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
