"""An input embedding that stays in host memory: who may have one, and how a model gets it."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from xtuner.errors import UserError
from xtuner.model.head import base_model
from xtuner.ops.host_row import host_copy, host_rows


class HostEmbedding(nn.Module):
    """A frozen embedding (V, D) in host memory, pinned for a card, that gives the rows it is asked for on `device`."""

    weight: Tensor

    def __init__(self, embedding: nn.Embedding, device: torch.device) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx, self.device = embedding.padding_idx, device
        # under its name, but no parameter: what asks a model where its parameters are must not hear of the host
        self.register_buffer("weight", host_copy(embedding.weight.detach(), device))

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., D) on the device of the model."""
        return host_rows(self.weight, ids, self.device)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """It stays where and as it is when the model moves."""
        return self


def keep_on_host(model: nn.Module) -> None:
    """Put a `HostEmbedding` in the place of the input embedding of a model whose adapter is in place.

    Raises:
        UserError: the embedding is trained, is the output head too, or does more than look rows up.
    """
    inner = base_model(model)
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    fix = "Leave model.host_embedding out."
    if any(parameter.requires_grad for parameter in embedding.parameters()):
        raise UserError("The input embedding is trained in this run, so it cannot stay in host memory.", fix)
    if type(embedding) is not nn.Embedding:
        raise UserError(
            f"The input embedding of {type(inner).__name__} does more than look rows up, so it stays on the card.", fix
        )
    if getattr(head, "weight", None) is embedding.weight:
        raise UserError("The input embedding is the output head too, which every token needs on the card.", fix)
    name = next(name for name, module in inner.named_modules() if module is embedding)
    device = next(parameter.device for parameter in inner.parameters() if parameter is not embedding.weight)
    inner.set_submodule(name, HostEmbedding(embedding, device))
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the copy on the card is not needed any more
