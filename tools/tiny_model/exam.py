"""Owns the examination: held-out questions, the model's greedy answers, and whether they say what they should."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_corpus.mixture import load_held_out
from torch import nn

from tiny_model.encode import TEMPLATE
from xtuner.config.spec import ModelSpec
from xtuner.conversation.builtin import find_template
from xtuner.conversation.chat_model import Sampling
from xtuner.conversation.message import Message
from xtuner.generate.local import LocalChat
from xtuner.model.load import load_model, load_tokenizer

GREEDY = Sampling(max_new_tokens=120, temperature=0)


@dataclass(frozen=True)
class Mark:
    """How one question went. `right`: a wanted word is in the answer; `ended`: the turn ended by itself."""

    question: str
    answer: str
    right: bool
    ended: bool


def load_examinee(folder: Path) -> nn.Module:
    """Load the model in fp32 on the CPU."""
    return load_model(ModelSpec(path=str(folder)), device="cpu", dtype=torch.float32, train=False)


def examine(folder: Path, model: nn.Module) -> list[Mark]:
    """Ask every held-out question."""
    chat = LocalChat(model, load_tokenizer(str(folder)), find_template(TEMPLATE))
    marks = []
    for _, question, wanted in load_held_out():
        pieces = list(chat.stream([Message("user", question)], GREEDY))
        answer = "".join(piece.text for piece in pieces)
        right = any(word in answer for word in wanted)
        marks.append(Mark(question, answer, right, pieces[-1].finish == "stop"))
    return marks
