"""A loaded model as a `ChatModel`: prompt, cache of keys and values, one token after another, text."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from xtuner.conversation.chat_model import Delta, Sampling
from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Conversation
from xtuner.conversation.template import ChatTemplate
from xtuner.errors import UserError
from xtuner.generate.detokenizer import Detokenizer
from xtuner.generate.sampler import Sampler
from xtuner.log import LOGGER
from xtuner.model.checks import check_vocabulary

ANSWER_SHARE = 4
"""At least 1 / ANSWER_SHARE of the model's context is kept free for the answer (less if fewer tokens are wanted)."""
UNLIMITED = 2**31
"""Tokens; for models that do not state how much they read."""


class LocalChat:
    """Answers with a model in this process.

    The prompt is spelled and tokenised by the same two functions as the training data; without a `template` by the
    tokenizer's own chat template. A conversation that outgrows the model's context loses its oldest turns for the
    prompt, and `tell` says so.

    It remembers the keys and values of the last conversation, so that the next turn computes only what is new:
    make another `LocalChat` when the weights change. The model must be in `eval` mode.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        template: ChatTemplate | None,
        *,
        show_special: bool = False,
        tell: Callable[[str], None] = LOGGER.info,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.show_special = show_special
        self.tell = tell
        self._encoder = Encoder(tokenizer)
        self._config = cast(Any, model.config)
        self._stop_ids = _stop_ids(getattr(model, "generation_config", None), self._config, tokenizer)
        limit = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        self._context = int(limit or UNLIMITED)
        self._seen: list[int] = []
        self._cache: DynamicCache | None = None

    def stream(self, conversation: Conversation, sampling: Sampling, *, tools: Sequence[Any] = ()) -> Iterator[Delta]:
        """Yield the answer to the last message, piece by piece; the last piece says why it ended.

        Raises:
            UserError: the question alone is longer than the context, tokens that the model does not know, tools (this
                model cannot call any), logits that are no numbers, no memory.
        """
        if tools:
            raise UserError("A model in this process cannot call tools yet.", "Ask without tools.")
        sampler = Sampler(sampling)
        ids = self._prompt(conversation, sampling.max_new_tokens)
        stop_words = [*(self.template.stop_words if self.template else ()), *sampling.stop_words]
        text = Detokenizer(self.tokenizer, stop_words, show_special=self.show_special)
        end = min(len(ids) + sampling.max_new_tokens, self._context)
        fresh = ids[self._reuse(ids) :]
        while len(ids) < end:
            token = sampler.choose(self._advance(fresh), ids)
            ids.append(token)
            fresh = [token]
            if token in self._stop_ids:
                break
            if piece := text.push(token):
                yield Delta(piece)
            if text.stopped:
                break
        stopped = text.stopped or ids[-1] in self._stop_ids
        if rest := text.finish():
            yield Delta(rest)
        yield Delta(finish="stop" if stopped or text.stopped else "length")

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Return the ids that the model reads before it answers."""
        if self.template is not None:
            return self._encoder.encode(self.template.render(conversation, reply=True))[0]
        messages = [{"role": message.role, "content": message.text} for message in conversation]
        encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def _prompt(self, conversation: Conversation, max_new_tokens: int) -> list[int]:
        room = self._context - min(max_new_tokens, self._context // ANSWER_SHARE)
        kept, num_dropped = list(conversation), 0
        ids = self.prompt_ids(kept)
        while len(ids) > room:
            turn = _oldest_turn(kept)
            if turn is None:
                break
            num_dropped += turn.stop - turn.start
            del kept[turn]
            ids = self.prompt_ids(kept)
        check_vocabulary(self.model, max(ids, default=0), str(getattr(self.tokenizer, "name_or_path", "the folder")))
        if len(ids) >= self._context:
            raise UserError(
                f"The question has {len(ids)} tokens, and this model reads {self._context} at most.", "Shorten it."
            )
        if num_dropped:
            self.tell(
                f"The conversation is longer than the {self._context} tokens this model reads: "
                f"its oldest {num_dropped} messages are left out."
            )
        return ids

    def _reuse(self, ids: list[int]) -> int:
        """Cut the cache back to what it shares with `ids`; return how many tokens that is."""
        shared = _num_shared(self._seen, ids[:-1])
        cuttable = self._cache is not None and all(type(layer) is DynamicLayer for layer in self._cache.layers)
        if self._cache is None or not shared or not cuttable:
            self._cache, self._seen = DynamicCache(config=self._config), []
            return 0
        if shared < len(self._seen):
            self._cache.crop(shared - len(self._seen))
        self._seen = self._seen[:shared]
        return shared

    @torch.no_grad()
    def _advance(self, ids: list[int]) -> Tensor:
        """Let the model read `ids` after what it has seen; return the logits (V,) of the next token."""
        device = next(self.model.parameters()).device
        if device.type == "meta":  # offloaded weights are fetched, and inputs moved, layer by layer
            device = torch.device("cpu")
        seen, self._seen = self._seen, []  # a pass that is interrupted leaves the cache half changed: forget it then
        try:
            output = self.model(
                input_ids=torch.tensor([ids], device=device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"There is no memory for a conversation of {len(seen) + len(ids)} tokens.",
                "Type RESET, load the model with --bits 4, or give a smaller --max-new-tokens.",
            ) from error
        self._seen = seen + ids
        return output.logits[0, -1]


def _oldest_turn(conversation: Conversation) -> slice | None:
    """Messages of the oldest turn (a question and what follows it), or None if only the last question is left."""
    starts = [
        place
        for place, message in enumerate(conversation)
        if message.role == "user" and (place == 0 or conversation[place - 1].role != "user")
    ]
    return slice(starts[0], starts[1]) if len(starts) > 1 else None


def _num_shared(left: list[int], right: list[int]) -> int:
    """How many ids two lists begin with in common."""
    pairs = zip(left, right, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _stop_ids(*sources: Any) -> frozenset[int]:
    """Every id that ends an answer, according to the generation config, the model config and the tokenizer."""
    found: set[int] = set()
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        found |= set(ids) if isinstance(ids, list | tuple) else {ids} if ids is not None else set()
    return frozenset(found)
