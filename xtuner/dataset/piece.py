"""Owns arithmetic on pieces, the stretches of ids that a sample is made of: count them, cut them, lay them out."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from xtuner.conversation.encode import Piece
from xtuner.conversation.word import to_bytes

ID_BYTES = 4
"""Of one id in a `Piece`."""


def num_tokens(pieces: Sequence[Piece]) -> int:
    """Count the ids of `pieces`."""
    return sum([len(ids) for ids, _ in pieces]) // ID_BYTES


def to_pieces(ids: list[int], trained: list[bool]) -> list[Piece]:
    """Turn ids and their marks into pieces that are learned or not."""
    pieces: list[Piece] = []
    at = 0
    for train, group in groupby(trained):
        size = sum(1 for _ in group)
        pieces.append((to_bytes(ids[at : at + size]), train))
        at += size
    return pieces


def learns(pieces: Sequence[Piece]) -> bool:
    """Whether a target remains: the first token of a sample is never one."""
    at = 0
    for ids, train in pieces:
        at += len(ids)
        if train and ids and at > ID_BYTES:
            return True
    return False


def cut(pieces: Sequence[Piece], max_length: int) -> Iterator[list[Piece]]:
    """Yield windows of `max_length` tokens, the last one maybe shorter."""
    window: list[Piece] = []
    room = max_length * ID_BYTES
    for ids, train in pieces:
        at = 0
        while at < len(ids):
            taken = ids[at : at + room]
            window.append((taken, train))
            at += len(taken)
            room -= len(taken)
            if room == 0:
                yield window
                window, room = [], max_length * ID_BYTES
    if window:
        yield window


def whole_turns(pieces: list[Piece], turns: Sequence[int], max_length: int) -> list[Piece]:
    """The first turns that fit, by the number of pieces in each."""
    kept = at = 0
    for size in turns:
        at += size
        if num_tokens(pieces[:at]) > max_length:
            break
        kept = at
    return pieces[:kept]
