"""`model.chat(tokenizer, query, history)` and its relatives, as the checkpoints' own programs offered them.

What is said is spelled by the same renderer and encoder as the training data. `ChatMixin` gives a causal language model
the methods; programs written for the original models call them.
"""

import copy
import functools
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from xtuner.conversation.builtin import find_template
from xtuner.conversation.detect import detect_template, detect_text
from xtuner.conversation.encode import Encoder, reads_roles_as_text
from xtuner.conversation.message import Conversation, Message
from xtuner.conversation.template import ChatTemplate
from xtuner.errors import UserError
from xtuner.log import LOGGER

History = Sequence[Any]
"""Turns that were had: (question, answer) pairs, or {"role", "content"} messages."""

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder puts for bytes that are no whole character (yet)."""
MAX_NEW_TOKENS = 1024
LENGTHS = ("max_new_tokens", "max_length", "generation_config")
ROLES = ("system", "user", "assistant")
SAMPLING: Mapping[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.8}
"""How the programs of InternLM and ChatGLM draw."""


class ChatMixin:
    """The methods, for a class that also is a `PreTrainedModel` with `generate`.

    `options` of every method are those of `generate` (`max_new_tokens`, `temperature`, `generation_config` ...).
    """

    CHAT_SAMPLING: ClassVar[Mapping[str, Any]] = {}
    """How answers are drawn if nothing is said; empty: as generation_config.json says."""

    TEMPLATE: ClassVar[str]
    """The template of the family's chat models."""

    def default_template(self, tokenizer: Any) -> str:
        """Return the name of the template to use where neither files nor tokenizer show one."""
        return self.TEMPLATE

    def chat(
        self,
        tokenizer: Any,
        query: str | Sequence[Mapping[str, str]],
        history: History | None = None,
        *,
        stream: bool = False,
        streamer: BaseStreamer | None = None,
        **options: Any,
    ) -> Any:
        """Answer `query`; returns the answer and the history with this turn.

        A list of messages instead of `query` (as Baichuan's programs give it) returns the answer alone, with `stream`
        an iterator over the answer so far. `system` or `meta_instruction` is a system text.

        Raises:
            UserError: a message of an unknown kind, or a template without place for a system text.
        """
        answer = Answer(self, tokenizer, query, history, options)
        if stream:
            return (text for text, _ in answer.stream())
        text = answer.generate(streamer)
        return text if not isinstance(query, str) else (text, answer.history(text))

    def stream_chat(
        self,
        tokenizer: Any,
        query: str | Sequence[Mapping[str, str]],
        history: History | None = None,
        *,
        return_past_key_values: bool = False,
        past_key_values: None = None,
        **options: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Yield (answer so far, history with this turn); with `return_past_key_values` also None, as no cache is kept
        between turns."""
        for text, turns in Answer(self, tokenizer, query, history, options).stream():
            yield (text, turns, None) if return_past_key_values else (text, turns)

    def chat_stream(
        self,
        tokenizer: Any,
        query: str | Sequence[Mapping[str, str]],
        history: History | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Yield the answer so far (Qwen's name for it)."""
        return (text for text, _ in Answer(self, tokenizer, query, history, options).stream())


class Answer:
    """One answer to be: the prompt, and what ends it."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        query: str | Sequence[Mapping[str, str]],
        history: History | None,
        options: Any,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.query = query
        self.turns = list(history or [])
        self.options = dict(options)
        self.template = choose_template(model, tokenizer)
        conversation = self._conversation(self.options.pop("system", None), self.options.pop("meta_instruction", None))
        if reads_roles_as_text(tokenizer):
            tokenizer = copy.deepcopy(tokenizer)  # the caller's own stays as it is
            tokenizer.split_special_tokens = False
        self.encoder = Encoder(tokenizer)
        self.prompt = self.encoder.encode(self.template.render(conversation, reply=True))[0]
        self.stop_words = [*self.template.stop_words]
        if self.template.suffix_as_eos and self.template.suffix not in self.stop_words:
            self.stop_words.append(self.template.suffix)

    def generate(self, streamer: BaseStreamer | None = None, stopping: StoppingCriteria | None = None) -> str:
        """Return the whole answer."""
        ids = [tokenizer_ids(self.encoder.tokenizer, word) for word in self.stop_words]
        options = dict(self.options)
        if "generation_config" not in options and options.get("do_sample", True):
            options = {**self.model.CHAT_SAMPLING, **options}
        if not any(options.get(key) for key in LENGTHS):
            options["max_new_tokens"] = MAX_NEW_TOKENS
        if ends := self._ends([found[0] for found in ids if len(found) == 1]):
            options.setdefault("eos_token_id", ends)
        words = [word for word, found in zip(self.stop_words, ids, strict=True) if len(found) != 1]
        if words:
            options.update(stop_strings=words, tokenizer=self.tokenizer)
        if stopping is not None:
            options["stopping_criteria"] = StoppingCriteriaList([stopping, *options.pop("stopping_criteria", [])])
        prompt = torch.tensor([self.prompt], device=self.model.device)
        output = self.model.generate(prompt, attention_mask=torch.ones_like(prompt), streamer=streamer, **options)
        return self.text(output[0, len(self.prompt) :].tolist())

    def text(self, ids: list[int]) -> str:
        """Return the words in `ids`, up to the first stop word; an incomplete character at the end is dropped."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        ends = [place for word in self.stop_words if (place := text.find(word)) >= 0]
        return text[: min(ends, default=len(text))].rstrip(BROKEN).strip()

    def history(self, text: str) -> list[Any]:
        """Return the turns with this one, in the form in which they came."""
        messages = isinstance(self.turns[0], Mapping) if self.turns else self.template.name == "chatglm3"
        if messages:
            return [*self.turns, {"role": "user", "content": self.query}, {"role": "assistant", "content": text}]
        return [*self.turns, (self.query, text)]

    def stream(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield (answer so far, history with this turn) whenever a word is certain; generation runs in a thread."""
        tokens: queue.Queue[int | BaseException | None] = queue.Queue()
        leaving = threading.Event()

        def work() -> None:
            try:
                self.generate(_Tokens(tokens), _Left(leaving))
            except BaseException as error:  # raised again where the words are waited for
                tokens.put(error)
            tokens.put(None)

        threading.Thread(target=work, daemon=True).start()
        ids: list[int] = []
        said = None
        try:
            while (token := tokens.get()) is not None:
                if isinstance(token, BaseException):
                    raise token
                ids.append(token)
                text = self.text(ids)
                if text != said:
                    yield text, self.history(text)
                    said = text
        finally:
            leaving.set()

    def _conversation(self, *systems: str | None) -> Conversation:
        conversation: Conversation = [Message("system", text) for text in systems if text]
        turns = self.turns if isinstance(self.query, str) else [*self.turns, *self.query]
        for turn in turns:
            if isinstance(turn, Mapping) and turn.get("role") in ROLES:
                conversation.append(Message(turn["role"], str(turn.get("content") or "")))
            elif isinstance(turn, list | tuple) and len(turn) == 2:
                asked, answered = turn
                conversation += [Message("user", str(asked)), Message("assistant", str(answered or ""))]
            else:
                raise UserError(
                    f"A turn of the history is {turn!r}.",
                    "Give (question, answer) pairs, or messages with a role (system, user, assistant) and a content.",
                )
        return [*conversation, Message("user", self.query)] if isinstance(self.query, str) else conversation

    def _ends(self, found: list[int]) -> list[int]:
        """Every id that ends an answer, according to generation config, tokenizer and template."""
        given = getattr(self.options.get("generation_config") or self.model.generation_config, "eos_token_id", None)
        ends = [*(given if isinstance(given, list) else [given]), self.tokenizer.eos_token_id, *found]
        return sorted({int(index) for index in ends if index is not None})


def choose_template(model: Any, tokenizer: Any) -> ChatTemplate:
    """Return the template that the model's folder or its tokenizer shows, else that of its family."""
    name = detect_template(model.config.name_or_path) if model.config.name_or_path else None
    name = name or detect_text(tokenizer.chat_template or "", model.config.model_type)
    if name is None:
        name = cast(ChatMixin, model).default_template(tokenizer)
        _tell_choice(str(model.config.name_or_path or "this model"), name)
    return find_template(name)


@functools.cache
def _tell_choice(path: str, template: str) -> None:
    """Say once which template a model gets that shows none: it may be a base model, which was taught no such words."""
    LOGGER.info(
        "%s shows no chat template; it is asked in the words of %s, as chat models of its kind.", path, template
    )


def tokenizer_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of `text` alone."""
    return list(tokenizer.encode(text, add_special_tokens=False))


class _Tokens(BaseStreamer):
    """Puts the ids of an answer into a queue; the prompt comes first and is left out."""

    def __init__(self, tokens: "queue.Queue[int | BaseException | None]") -> None:
        self.tokens = tokens
        self.prompt_is_over = False

    def put(self, value: Tensor) -> None:
        """Take what was generated."""
        if self.prompt_is_over:
            for index in value.flatten().tolist():
                self.tokens.put(index)
        self.prompt_is_over = True

    def end(self) -> None:
        """Nothing: the thread says when it is done."""


class _Left(StoppingCriteria):
    """Stops generation when nobody listens any more."""

    def __init__(self, leaving: threading.Event) -> None:
        self.leaving = leaving

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Return (B,) whether to stop."""
        return torch.full((len(input_ids),), self.leaving.is_set(), device=input_ids.device)
