"""Reads a sentencepiece model file and turns its BPE vocabulary into a `tokenizers` model.

The file is a protocol buffer; the few fields needed are read here, so that no schema has to be compiled
(https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers.models import BPE

from xtuner.errors import UserError

Kind = Literal["normal", "unknown", "control", "user_defined", "unused", "byte"]
KINDS: dict[int, Kind] = {1: "normal", 2: "unknown", 3: "control", 4: "user_defined", 5: "unused", 6: "byte"}

# field numbers of the schema
MODEL_PIECE, MODEL_TRAINER, MODEL_NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_KIND = 1, 2, 3
TRAINER_MODEL_TYPE, TRAINER_BYTE_FALLBACK = 3, 35
NORMALIZER_CHARSMAP, NORMALIZER_DUMMY_PREFIX, NORMALIZER_TRIM = 2, 3, 4
BPE_MODEL = 2


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place in the list."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class SentencePieceModel:
    """What a model file says."""

    pieces: list[Piece]
    bpe: bool
    byte_fallback: bool
    dummy_prefix: bool
    """A space is put before every text."""
    identity: bool
    """Texts are neither normalised nor trimmed."""


def load_sentencepiece(path: str | Path) -> SentencePieceModel:
    """Read a `tokenizer.model`.

    Raises:
        UserError: the file is missing or is not a sentencepiece model.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no tokenizer file {path}.", "Copy tokenizer.model of the model into its folder.")
    try:
        return read_sentencepiece(path.read_bytes())
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise UserError(
            f"{path} is not a sentencepiece model; it may have been cut short.", "Download the tokenizer again."
        ) from error


def read_sentencepiece(data: bytes) -> SentencePieceModel:
    """Read the bytes of a model file; raises ValueError when they are something else."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == MODEL_PIECE and isinstance(value, bytes):
            fields = dict(_fields(value))
            text, score = fields[PIECE_TEXT], fields.get(PIECE_SCORE, b"\0\0\0\0")
            kind = fields.get(PIECE_KIND, 1)
            if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int)):
                raise ValueError("a piece has fields of the wrong type")
            pieces.append(Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], KINDS[kind]))
        elif number == MODEL_TRAINER and isinstance(value, bytes):
            trainer = dict(_fields(value))
        elif number == MODEL_NORMALIZER and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("no pieces")
    return SentencePieceModel(
        pieces=pieces,
        bpe=trainer.get(TRAINER_MODEL_TYPE, 1) == BPE_MODEL,
        byte_fallback=bool(trainer.get(TRAINER_BYTE_FALLBACK, 0)),
        dummy_prefix=bool(normalizer.get(NORMALIZER_DUMMY_PREFIX, 1)),
        identity=not normalizer.get(NORMALIZER_CHARSMAP) and not normalizer.get(NORMALIZER_TRIM, 1),
    )


def build_bpe(model: SentencePieceModel, names: dict[int, str]) -> BPE:
    """Make the BPE model of `tokenizers` that cuts text as sentencepiece does.

    `names` gives some ids another text (an overlay of special tokens on reserved pieces). Sentencepiece joins the
    two neighbours whose union has the best score, however the union is split; so every split of a piece becomes a
    merge, in the order of scores, and among splits of one piece the one with the longest left part first.
    """
    normal = {piece.text: index for index, piece in enumerate(model.pieces) if piece.kind == "normal"}
    ranked: list[tuple[float, int, int, str]] = []
    for text, index in normal.items():
        for cut in range(1, len(text)):
            if text[:cut] in normal and text[cut:] in normal:
                ranked.append((-model.pieces[index].score, index, -cut, text))
    ranked.sort()
    merges = [(text[:-cut], text[-cut:]) for _, _, cut, text in ranked]
    vocab = {names.get(index, piece.text): index for index, piece in enumerate(model.pieces)}
    if len(vocab) != len(model.pieces):
        raise ValueError("two ids have the same text")
    unknown = next(names.get(i, piece.text) for i, piece in enumerate(model.pieces) if piece.kind == "unknown")
    return BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of one message; fixed-size and length-delimited values as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("cut short")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("number too long")
