"""What it costs to round the weights of a model: its loss and its logits on a batch, before and after."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from xtuner.model.head import PackedRow, decode, find_head
from xtuner.ops.linear_cross_entropy import IGNORE


class LearnedRow(PackedRow, Protocol):
    """A packed row with its labels (1, T): the token that each place is to say, or IGNORE."""

    @property
    def labels(self) -> Tensor: ...


@dataclass(frozen=True)
class RoundingCost:
    """Measured over the places that are learned, or over all where none is."""

    tokens: int
    loss_before: float
    """The mean over `tokens`, in nats; 0 where none is learned."""
    loss_after: float
    mean_logit: float
    """The mean of the absolute differences of all logits."""
    max_logit: float
    """The largest of them."""
    changed: float
    """Share of the places whose likeliest token is another."""

    @property
    def loss_change(self) -> float:
        """Positive: the rounded model is worse."""
        return self.loss_after - self.loss_before

    def say(self, what: str) -> str:
        """Return it as a sentence about `what`."""
        return (
            f"{what} changes the loss of the first batch ({self.tokens:,} tokens) by {self.loss_change:+.4f} "
            f"(from {self.loss_before:.4f} to {self.loss_after:.4f}), its logits by {self.mean_logit:.2g} on average "
            f"and {self.max_logit:.2g} at most, and the likeliest token in {self.changed:.1%} of the places."
        )


@torch.no_grad()
def measure_rounding(
    model: PreTrainedModel, row: LearnedRow, change: Callable[[PreTrainedModel], None]
) -> RoundingCost:
    """Call `change`, which rounds weights of `model` before its head, and return what it did to the answers on `row`.

    Only hidden states (T, D) are kept in between; the logits of both are made a chunk at a time.
    """
    learned = row.labels[0] != IGNORE
    places = learned if bool(learned.any()) else torch.ones_like(learned)
    targets = row.labels[0][places]
    with torch.compiler.set_stance("force_eager"):  # two passes are not worth a compilation
        before = decode(model, row).hidden[0][places]
        change(model)
        after = decode(model, row).hidden[0][places]
    head = find_head(model)
    losses = torch.zeros(2, dtype=torch.float64)
    total, largest, changed = 0.0, 0.0, 0
    for start in range(0, len(targets), head.chunk):
        chunk = slice(start, start + head.chunk)
        one, other = head(before[chunk]).float(), head(after[chunk]).float()
        for place, logits in enumerate((one, other)):
            losses[place] += float(
                functional.cross_entropy(logits, targets[chunk], reduction="sum", ignore_index=IGNORE)
            )
        changed += int((one.argmax(-1) != other.argmax(-1)).sum())
        apart = other.sub_(one).abs_()
        total += float(apart.double().sum())
        largest = max(largest, float(apart.max()))
    count = len(targets)
    first, second = (losses / count).tolist()
    return RoundingCost(count, first, second, total / (count * head.vocabulary), largest, changed / count)
