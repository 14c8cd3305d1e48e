"""More tokens than the checkpoint knows: rows added to the embedding and the output head."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtuner.config.spec import LoraSpec
from xtuner.errors import UserError
from xtuner.log import LOGGER

MULTIPLE = 64
"""Rows come in multiples of this, as in 0.1.x: cards multiply such matrices faster."""


@torch.no_grad()
def grow_vocabulary(model: PreTrainedModel, num_tokens: int) -> bool:
    """Give the embedding and the head rows for `num_tokens` tokens; says whether any were missing.

    New rows are the mean of the others, so that a token nobody has seen is neither likely nor strange
    (https://nlp.stanford.edu/~johnhew/vocab-expansion.html). Nothing is ever taken away: checkpoints often hold more
    rows than their tokenizer has tokens.

    Raises:
        UserError: the rows are quantised, or the model has them in another place.
    """
    known = _rows(model.get_input_embeddings()).shape[0]
    if num_tokens <= known:
        return False
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if not _rows(module).is_floating_point():
            raise UserError(
                f"The vocabulary cannot grow from {known} to {num_tokens} tokens: its rows are quantised.",
                "Leave model.quant out, or save the model with the larger embeddings first.",
            )
    rows = -(-num_tokens // MULTIPLE) * MULTIPLE
    model.resize_token_embeddings(rows, mean_resizing=False)
    grown = {id(weight): weight for weight in map(_rows, (model.get_input_embeddings(), model.get_output_embeddings()))}
    for weight in grown.values():
        if weight.shape[0] != rows:
            raise UserError(
                f"The vocabulary of {type(model).__name__} cannot grow.", "Use a tokenizer without added tokens."
            )
        weight[known:] = weight[:known].float().mean(0).to(weight.dtype)
    LOGGER.info("The vocabulary grows from %d to %d rows, for %d tokens.", known, rows, num_tokens)
    return True


def with_vocabulary(lora: LoraSpec, model: PreTrainedModel) -> LoraSpec:
    """Return the settings of an adapter that also trains (and saves) the embedding and the head, whole."""
    names = {id(module): name for name, module in model.named_modules()}
    wanted = [names[id(module)] for module in (model.get_input_embeddings(), model.get_output_embeddings())]
    further = [name for name in wanted if not {name, name.rpartition(".")[2]} & set(lora.modules_to_save)]
    return lora.model_copy(update={"modules_to_save": [*lora.modules_to_save, *further]})


def _rows(module: nn.Module | None) -> Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise UserError("The model has no embedding and head of the usual kind.", "Leave model.resize_vocab out.")
    return weight
