"""Supervised fine-tuning and continued pre-training: the next token, where it is learned."""

from dataclasses import dataclass

from torch import Tensor, nn

from xtuner.dataset.batch import IGNORE, Batch
from xtuner.model.head import decoder_hidden, find_head
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
        hidden = decoder_hidden(model, batch)[0]
        total = linear_cross_entropy(hidden, head, batch.labels[0], head.chunk, parameters=head.parameters)
        return Loss(total, self.count(batch))
