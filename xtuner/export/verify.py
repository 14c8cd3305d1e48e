"""Does a merged folder say what the base with its adapter says? Answered on real prompts, without loading either."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Message
from xtuner.conversation.template import ChatTemplate
from xtuner.errors import UserError
from xtuner.export.fold import Fold
from xtuner.export.streamed import StreamedModel

PROMPTS = (
    "Who are you, and what can you do for me?",
    "请用三句话介绍一下北京的春天。",
    "Write a loop that sums 1 to 10.",
)
MAX_TOKENS = 48
SLACK = 8.0
"""How far above the estimate of rounding errors a difference may be: they were between 0.02 and 2 times the estimate
in merges (2 to 32 layers; fp32, fp16, bf16) that were right weight by weight."""


@dataclass(frozen=True)
class Comparison:
    """Logits of a merged model against its base with the adapter."""

    largest: float
    """The largest difference of a logit."""
    typical: float
    """Root mean square of the differences."""
    spread: float
    """Root mean square of the logits around their mean, for scale."""
    limit: float
    """What `typical` may be if nothing but rounding differs."""

    @property
    def agrees(self) -> bool:
        """Whether nothing but rounding differs."""
        return self.typical <= self.limit  # False for NaN


def compare(
    base: Path, fold: Fold, merged: Path, tokenizer: Any, template: ChatTemplate | None, *, device: str = "cpu"
) -> Comparison:
    """Compare the next-token logits of both on a few prompts, in fp32.

    The weights of `merged` were rounded to their dtype once: independent relative errors of about eps / 4 in every
    changed matrix, which add up like a random walk over the layers. `SLACK` times that estimate is allowed.

    Raises:
        Unnamed: the architecture cannot be streamed.
        UserError: a folder cannot be read, or the tokenizer is another model's.
    """
    first, second = StreamedModel(base, fold, device), StreamedModel(merged, None, device)
    config = first.config.get_text_config()
    rows = [[index for index in row if index < config.vocab_size] for row in _prompts(tokenizer, template)]
    if not all(rows):
        raise UserError(f"The tokenizer of {base} does not fit the model.", "Copy or download the model again.")
    width = max(map(len, rows))
    ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows])
    real = torch.tensor([[place < len(row) for place in range(width)] for row in rows])
    expected, got = first.logits(ids)[real], second.logits(ids)[real]
    difference = got[:, : expected.shape[1]] - expected
    spread = _rms(expected - expected.mean(-1, keepdim=True))
    num_layers = getattr(config, "num_hidden_layers", 32)
    step = max(torch.finfo(dtype).eps for dtype in second.dtypes)
    limit = SLACK * max(step / 4, 1e-6) * math.sqrt(2 * num_layers + 1) * spread
    return Comparison(float(difference.abs().max()), _rms(difference), spread, limit)


def _prompts(tokenizer: Any, template: ChatTemplate | None) -> list[list[int]]:
    encoder = Encoder(tokenizer)
    rows = []
    for text in PROMPTS:
        if template is None:
            ids = encoder.bos + list(tokenizer.encode(text, add_special_tokens=False))
        else:
            ids, _ = encoder.encode(template.render([Message("user", text)], reply=True))
        rows.append(ids[:MAX_TOKENS])
    return rows


def _rms(values: Tensor) -> float:
    return float(values.double().pow(2).mean().sqrt())
