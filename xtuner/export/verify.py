"""Does a merged folder say what the base with its adapter says? Answered weight by weight, and on real prompts without
loading either."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtuner.checkpoint.shards import ShardReader
from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Message
from xtuner.conversation.template import ChatTemplate
from xtuner.errors import UserError
from xtuner.export.fold import Fold, embedding_name
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
AGAIN = 4.0
"""How far above the difference that rounding once more makes a difference may be: measured, so it needs less slack."""
FP32_NOISE = 1e-5
"""What two orders of the same sums in fp32 may differ by, as a share of a weight's root mean square; it is 1e-7."""


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


def find_wrong_weight(base: ShardReader, fold: Fold, merged: ShardReader, device: str = "cpu") -> str | None:
    """Return the name of a weight that is not base + adapter rounded once to its dtype, or None if all are.

    Each number may be half a step of its format away from the exact one, so a mistake shows however strong or weak the
    adapter is, and a sum that is rounded never looks like one.
    """
    for name in sorted(fold.names()):
        if name not in merged:
            return name
        stored = merged.get(name).to(device)
        known = base.get(name if name in base else embedding_name(base)).to(device)
        format_ = torch.finfo(stored.dtype)
        smallest = format_.smallest_normal * format_.eps / 2
        for place, exact in fold.effective(name, known):
            allowed = 0.505 * format_.eps * exact.abs() + (FP32_NOISE * _rms(exact) + smallest)
            if stored[place].shape != exact.shape or not bool(((stored[place].float() - exact).abs() <= allowed).all()):
                return name
    return None


def compare(
    base: Path,
    fold: Fold,
    merged: Path,
    tokenizer: Any,
    template: ChatTemplate | None,
    *,
    device: str = "cpu",
    changes: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Comparison:
    """Compare the next-token logits of both on a few prompts, in fp32.

    The weights of `merged` were rounded to their dtype once: independent relative errors of about eps / 4 in every
    changed matrix, which add up like a random walk over the layers. `SLACK` times that estimate is allowed. A strong
    adapter can make a model that blows small errors up; where the estimate is exceeded, the merged model is run with
    errors of that size once more, and `AGAIN` times the difference that they make is allowed.

    `changes` is what config.json of the base says differently under the adapter.

    Raises:
        Unnamed: the architecture cannot be streamed.
        UserError: a folder cannot be read, or the tokenizer is another model's.
    """
    first = StreamedModel(base, fold, device, changes=changes, trust_remote_code=trust_remote_code)
    second = StreamedModel(merged, None, device, trust_remote_code=trust_remote_code)
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
    typical = _rms(difference)
    if typical > limit:
        again = StreamedModel(merged, None, device, rounded_again=fold.names(), trust_remote_code=trust_remote_code)
        limit = max(limit, AGAIN * _rms(again.logits(ids)[real] - got))
    return Comparison(float(difference.abs().max()), typical, spread, limit)


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
