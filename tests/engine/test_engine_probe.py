"""What the questions during training are asked with."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from xtuner.config.spec import ProbeSpec
from xtuner.conversation.builtin import find_template
from xtuner.conversation.chat_model import Delta, Sampling
from xtuner.conversation.message import Conversation
from xtuner.engine.callbacks import probe


def test_stop_words_reach_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sampling] = []

    class Chat:
        def __init__(self, *parts: object) -> None:
            pass

        def stream(self, conversation: Conversation, sampling: Sampling) -> Iterator[Delta]:
            asked.append(sampling)
            yield Delta("yes", finish="stop")

    monkeypatch.setattr(probe, "LocalChat", Chat)
    monkeypatch.setattr(probe, "paused", nullcontext)
    run = SimpleNamespace(
        iteration=0,
        seed=3,
        model=None,
        tokenizer=None,
        strategy=SimpleNamespace(within=lambda function: function()),
        stopping=lambda: False,
    )
    spec = ProbeSpec(questions=["Is it?"], stop_words=["END"])
    probe.Probe(spec, find_template("internlm2_chat")).before_train(run)  # type: ignore[arg-type]
    assert [(sampling.stop_words, sampling.seed, sampling.max_new_tokens) for sampling in asked] == [(("END",), 3, 50)]
