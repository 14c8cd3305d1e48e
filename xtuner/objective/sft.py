"""Supervised fine-tuning and continued pre-training: the next token, where it is learned."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from xtuner.dataset.batch import IGNORE, Batch
from xtuner.model.head import decode, find_head
from xtuner.objective.loss import Loss
from xtuner.ops.linear_cross_entropy import linear_cross_entropy


@dataclass(frozen=True)
class SFT:
    """Cross entropy, summed over the tokens that are learned."""

    def count(self, batch: Batch) -> Tensor:
        """Return the number of learned tokens."""
        return (batch.labels != IGNORE).sum()

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the summed loss of the batch; the same sum however samples are packed or spread over batches."""
        head = find_head(model)
        hidden, penalty = decode(model, batch)
        total = linear_cross_entropy(
            hidden[0], head, batch.labels[0], head.chunk, parameters=head.parameters, learned=batch.learned
        )
        if penalty is not None:
            total = total + shape_gradient(penalty, batch)
        return Loss(total, self.count(batch))


def shape_gradient(penalty: Tensor, batch: Batch) -> Tensor:
    """Return a zero whose gradient is that of the penalties (S,), each counted once for every target of its segment.

    So a penalty weighs as much against the mean loss as its model says, however samples are packed or spread over
    batches, and the loss that is shown stays the cross entropy, as it is in the original code of such models.
    """
    learned = functional.pad((batch.labels[0] != IGNORE).cumsum(0), (1, 0))
    targets = learned[batch.packing.cu_seqlens.long()].diff()
    weighted = (penalty * targets).sum()
    return weighted - weighted.detach()
