"""The choice of the next token."""

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from xtuner.conversation.chat_model import Sampling
from xtuner.errors import UserError


class Sampler:
    """Draws one token after another as `Sampling` says; the same seed gives the same answer."""

    def __init__(self, sampling: Sampling) -> None:
        self.greedy = sampling.temperature <= 0
        self._seed = sampling.seed
        self._generator: torch.Generator | None = None
        self._needs_ids = sampling.repetition_penalty != 1
        self._processors = LogitsProcessorList()
        if self._needs_ids:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not self.greedy:
            self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, logits: Tensor, ids: list[int]) -> int:
        """Choose the token after `ids` (prompt and answer so far) from its `logits` (V,).

        Raises:
            UserError: the logits are no numbers.
        """
        if not bool(torch.isfinite(logits).any()) or bool(torch.isnan(logits).any()):
            raise UserError(
                "The model's output is not a number; its weights are damaged, or float16 is too narrow for it.",
                "Try --torch-dtype bf16 or fp32.",
            )
        seen = torch.tensor([ids if self._needs_ids else []], dtype=torch.long, device=logits.device)
        scores = self._processors(seen, logits.float()[None])  # type: ignore[arg-type]
        if self.greedy:
            return int(scores.argmax())
        if self._generator is None:
            self._generator = torch.Generator(scores.device).manual_seed(self._seed)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
