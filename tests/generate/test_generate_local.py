"""A loaded model as a `ChatModel`: the same tokens as transformers' own loop, whatever was said before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_tiny_internlm2
from torch import nn

from xtuner.conversation.builtin import find_template
from xtuner.conversation.chat_model import Delta, Sampling
from xtuner.conversation.message import Conversation, Message
from xtuner.errors import UserError
from xtuner.generate.load import load_chat
from xtuner.generate.local import LocalChat

GREEDY = Sampling(max_new_tokens=12, temperature=0)
QUESTION = [Message("user", "Hello, who are you?")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_internlm2(tmp_path_factory.mktemp("model"), intermediate_size=96)


@pytest.fixture
def chat(folder: Path) -> LocalChat:
    return load_chat(folder, tell=lambda text: None)


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def answer(chat: LocalChat, conversation: Conversation, sampling: Sampling = GREEDY) -> tuple[str, str | None]:
    deltas = list(chat.stream(conversation, sampling))
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    return text_of(deltas), deltas[-1].finish


class Counting(nn.Module):
    """Passes everything on, and notes how many tokens were read in each pass; may be told to fail."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.config = inner.config
        self.generation_config = inner.generation_config
        self.read: list[int] = []
        self.fail_at: int | None = None

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        self.read.append(input_ids.shape[1])
        output = self.inner(input_ids, **options)
        if self.fail_at == len(self.read):
            raise KeyboardInterrupt
        return output


class Scripted(nn.Module):
    """A model that says given ids, one after another, whatever it reads."""

    def __init__(self, config: Any, says: list[int]) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(1))
        self.says = iter(says)

    def get_input_embeddings(self) -> nn.Module:
        return nn.Embedding(self.config.vocab_size, 1)

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        logits = torch.zeros(1, 1, self.config.vocab_size)
        logits[..., next(self.says)] = 10
        return type("Output", (), {"logits": logits})


def scripted(chat: LocalChat, text: str, **options: Any) -> LocalChat:
    ids = chat.tokenizer.encode(text, add_special_tokens=False)
    return LocalChat(Scripted(chat.model.config, ids), chat.tokenizer, chat.template, **options)


def test_greedy_equals_transformers(chat: LocalChat) -> None:
    ids = chat.prompt_ids(QUESTION)
    expected = chat.model.generate(  # type: ignore[operator]
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=12, do_sample=False
    )[0, len(ids) :]
    assert len(expected) == 12
    shown = LocalChat(chat.model, chat.tokenizer, chat.template, show_special=True)
    assert answer(shown, QUESTION) == (chat.tokenizer.decode(expected).rstrip("\N{REPLACEMENT CHARACTER}"), "length")


def test_repetition_penalty_equals_transformers(chat: LocalChat) -> None:
    ids = chat.prompt_ids(QUESTION)
    expected = chat.model.generate(  # type: ignore[operator]
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        max_new_tokens=12,
        do_sample=False,
        repetition_penalty=1.7,
    )[0, len(ids) :]
    shown = LocalChat(chat.model, chat.tokenizer, chat.template, show_special=True)
    got, _ = answer(shown, QUESTION, replace(GREEDY, repetition_penalty=1.7))
    assert got == chat.tokenizer.decode(expected).rstrip("\N{REPLACEMENT CHARACTER}")
    assert got != answer(shown, QUESTION)[0]


def test_the_prompt_is_the_template(chat: LocalChat) -> None:
    """compat/formats.md sections 4 and 5: BOS once, segments tokenised alone."""
    conversation = [Message("system", "s"), Message("user", "q"), Message("assistant", "a"), Message("user", "r")]
    text = chat.tokenizer.decode(chat.prompt_ids(conversation))
    assert text == (
        "<s><|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_seed_gives_one_answer(chat: LocalChat) -> None:
    warm = Sampling(max_new_tokens=20, temperature=1.5, top_k=0, top_p=1.0)
    assert answer(chat, QUESTION, warm) == answer(chat, QUESTION, warm)
    assert answer(chat, QUESTION, warm) != answer(chat, QUESTION, replace(warm, seed=1))
    assert (
        answer(chat, QUESTION, replace(warm, top_k=1))[0]
        == answer(chat, QUESTION, replace(GREEDY, max_new_tokens=20))[0]
    )
    assert answer(chat, QUESTION, replace(warm, top_p=1e-6))[0] == answer(chat, QUESTION, replace(warm, top_k=1))[0]


def test_the_next_turn_reads_only_what_is_new(chat: LocalChat) -> None:
    counting = LocalChat(Counting(chat.model), chat.tokenizer, chat.template)
    conversation = list(QUESTION)
    num_read = 0
    for turn in range(3):
        counting.model.read.clear()
        said, _ = answer(counting, conversation)
        fresh, _ = answer(LocalChat(chat.model, chat.tokenizer, chat.template), conversation)
        assert said == fresh, f"turn {turn}"
        num_prompt = len(counting.prompt_ids(conversation))
        assert counting.model.read[0] <= num_prompt - num_read, "what was read before is not read again"
        num_read = num_prompt
        assert counting.model.read[1:] == [1] * 11
        conversation += [Message("assistant", said), Message("user", f"and {turn}?")]
    other = [Message("user", "something else")]
    assert answer(counting, other) == answer(LocalChat(chat.model, chat.tokenizer, chat.template), other)


def test_an_interrupted_pass_does_not_spoil_the_cache(chat: LocalChat) -> None:
    expected = answer(chat, QUESTION)
    counting = LocalChat(Counting(chat.model), chat.tokenizer, chat.template)
    counting.model.fail_at = 4
    with pytest.raises(KeyboardInterrupt):
        answer(counting, QUESTION)
    counting.model.fail_at = None
    assert answer(counting, QUESTION) == expected
    stream = counting.stream(QUESTION, GREEDY)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert answer(counting, QUESTION) == expected


def test_no_gradient_mode_leaks_out(chat: LocalChat) -> None:
    for _ in chat.stream(QUESTION, GREEDY):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("end", ["<|im_end|>", "</s>"])
def test_it_stops_at_the_end_of_a_turn(chat: LocalChat, end: str) -> None:
    assert answer(scripted(chat, f"Hello.{end}never"), QUESTION) == ("Hello.", "stop")


def test_own_stop_words(chat: LocalChat) -> None:
    stop = replace(GREEDY, max_new_tokens=50, stop_words=("Observation:",))
    assert answer(scripted(chat, "I look.\nObservation: never"), QUESTION, stop) == ("I look.\n", "stop")


def test_finish_reasons(chat: LocalChat) -> None:
    assert answer(scripted(chat, "Hello, world!<|im_end|>"), QUESTION, replace(GREEDY, max_new_tokens=2))[1] == "length"
    num_tokens = len(chat.tokenizer.encode("Hello<|im_end|>", add_special_tokens=False))
    assert answer(scripted(chat, "Hello<|im_end|>"), QUESTION, replace(GREEDY, max_new_tokens=num_tokens))[1] == "stop"


def test_special_tokens_are_hidden_unless_asked_for(chat: LocalChat) -> None:
    says = "a<|action_start|>b<|im_end|>"
    assert answer(scripted(chat, says), QUESTION) == ("ab", "stop")
    assert answer(scripted(chat, says, show_special=True), QUESTION) == ("a<|action_start|>b", "stop")


def test_the_oldest_turns_go_when_the_context_is_full(tmp_path: Path) -> None:
    told: list[str] = []
    small = load_chat(make_tiny_internlm2(tmp_path, max_position_embeddings=160), tell=told.append)
    told.clear()
    conversation = [Message("system", "be brief")]
    for number in range(12):
        conversation += [Message("user", f"question {number}"), Message("assistant", f"answer {number}")]
    conversation.append(Message("user", "last one"))
    before = list(conversation)
    _, finish = answer(small, conversation, replace(GREEDY, max_new_tokens=500))
    assert conversation == before
    assert finish == "length"
    assert len(told) == 1
    assert "longer than the 160 tokens" in told[0]
    read = small.tokenizer.decode(small._seen)
    assert read.startswith("<s><|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nquestion ")
    assert "question 0<" not in read
    assert "last one" in read
    assert len(small._seen) <= 160
    with pytest.raises(UserError, match="this model reads 160 at most"):
        answer(small, [Message("user", "too long " * 200)])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.2}, "top-p"),
        ({"temperature": float("nan")}, "temperature"),
        ({"repetition_penalty": float("inf")}, "repetition penalty"),
        ({"top_k": -1}, "top-k"),
        ({"repetition_penalty": 0.0}, "repetition"),
        ({"max_new_tokens": 0}, "new tokens"),
    ],
)
def test_values_that_make_no_sense(changes: dict[str, Any], word: str) -> None:
    """Before any model is loaded."""
    with pytest.raises(UserError, match=word) as caught:
        replace(GREEDY, **changes)
    assert caught.value.exit_code == 2


def test_tokens_of_another_model_are_named(chat: LocalChat) -> None:
    small = scripted(chat, "Hello")
    small.model.config.vocab_size = 100
    with pytest.raises(UserError, match="knows only 100"):
        answer(small, QUESTION)


def test_what_it_cannot_do_is_said(chat: LocalChat) -> None:
    with pytest.raises(UserError, match="tools"):
        next(iter(chat.stream(QUESTION, GREEDY, tools=[object()])))
    broken = scripted(chat, "Hello")
    broken.model.forward = lambda *a, **k: type("Output", (), {"logits": torch.full((1, 1, 752), torch.nan)})
    with pytest.raises(UserError, match="not a number"):
        answer(broken, QUESTION)


def test_no_memory_is_a_sentence(chat: LocalChat) -> None:
    full = scripted(chat, "Hello")

    def forward(*words: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError

    full.model.forward = forward
    with pytest.raises(UserError, match="no memory for a conversation of"):
        answer(full, QUESTION)


def test_every_template_is_understood(chat: LocalChat) -> None:
    for name in ("default", "internlm_chat", "llama2_chat"):
        other = LocalChat(chat.model, chat.tokenizer, find_template(name))
        assert answer(other, QUESTION)[1] in ("length", "stop")
