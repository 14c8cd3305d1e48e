"""Owns the training tokens: talks drawn by many processes, spelled and encoded as every run of XTuner does it."""

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny_corpus.block import Talk
from tiny_corpus.mixture import Mixture, fold, load_held_out

from xtuner.conversation.builtin import find_template
from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Conversation, Message
from xtuner.model.load import load_tokenizer

TEMPLATE = "internlm2_chat"
CHUNK = 20_000
"""Talks per piece of work; a piece depends on the seed and its number, not on how many processes there are."""


@dataclass
class Tokens:
    """All samples, end to end: ids and whether each is learned; sample i is `ids[borders[i]:borders[i + 1]]`."""

    ids: np.ndarray
    trained: np.ndarray
    borders: np.ndarray


def to_conversation(talk: Talk) -> Conversation:
    """Turn a talk into messages."""
    messages = [Message("system", talk.system)] if talk.system else []
    for question, answer in talk.turns:
        messages += [Message("user", question), Message("assistant", answer)]
    return messages


def _encode_chunk(job: tuple[Path, str, int]) -> Tokens:
    folder, seed, count = job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder, template = Encoder(load_tokenizer(str(folder))), find_template(TEMPLATE)
    mixture = Mixture(frozenset(fold(question) for _, question, _ in load_held_out()))
    rows = [template.render(to_conversation(talk)) for talk in mixture.draw_many(seed, count)]
    ids, trained, lengths = [], [], [0]
    for pieces in encoder.encode_many(rows):
        for piece, learned in pieces:
            ids.extend(piece)
            trained.extend([learned] * len(piece))
        lengths.append(len(ids))
    return Tokens(np.array(ids, np.uint16), np.array(trained, bool), np.array(lengths, np.int64))


def encode_talks(folder: Path, *, num_talks: int, seed: int, num_processes: int) -> Tokens:
    """Draw and encode `num_talks` talks with the tokenizer in `folder`."""
    counts = [min(CHUNK, num_talks - start) for start in range(0, num_talks, CHUNK)]
    jobs = [(folder, f"train-{seed}-{number}", count) for number, count in enumerate(counts)]
    with multiprocessing.get_context("spawn").Pool(min(num_processes, len(jobs))) as pool:
        parts = list(pool.imap(_encode_chunk, jobs))
    starts = np.cumsum([0] + [len(part.ids) for part in parts])
    borders = [part.borders[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)]
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.trained for part in parts]),
        np.concatenate([*borders, starts[-1:]]),
    )
