"""The head of Baichuan2, which looks at directions only (https://arxiv.org/abs/2309.10305, section 2.4)."""

import torch
from torch import Tensor, nn


class NormHead(nn.Linear):
    """A head whose rows count as if they had length 1; they are stored, and trained, as they are."""

    @classmethod
    def around(cls, plain: nn.Linear) -> "NormHead":
        """Return a head with the weight of `plain`."""
        with torch.device("meta"):
            head = cls(plain.in_features, plain.out_features, bias=False)
        head.weight = plain.weight
        return head

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V). The logits are divided rather than the rows: that needs no second copy of them."""
        lengths = torch.linalg.vector_norm(self.weight, dim=1, dtype=torch.float32).clamp(min=1e-12)
        return (super().forward(hidden) / lengths).to(hidden.dtype)
