"""The tokenizer of Qwen, the first generation: byte-level BPE by the ranks of a tiktoken file."""

import base64
import binascii
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import bytes_to_unicode

from xtuner.errors import UserError
from xtuner.model.tokenizers.family import FamilyTokenizer, missing_vocabulary

VOCABULARY = "qwen.tiktoken"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What is never joined: a fact of the vocabulary, which was made of such pieces."""
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
"""In the order of their ids, which follow the ranks."""


class QWenTokenizer(FamilyTokenizer):
    """Texts are brought to NFC, special tokens are found in any text; no BOS, and no EOS unless one is given."""

    VOCABULARY = VOCABULARY
    vocab_files_names = {"vocab_file": VOCABULARY, "tokenizer_file": "tokenizer.json"}  # noqa: RUF012

    def __init__(self, vocab_file: str | None = None, tokenizer_file: str | None = None, **kwargs: Any) -> None:
        """Build from `vocab_file` (tiktoken), or from `tokenizer_file` where that is all there is.

        Raises:
            UserError: neither is there, or the file is of another kind.
        """
        if vocab_file is not None:
            kwargs["tokenizer_object"] = build_tokenizer(read_ranks(vocab_file))
        elif tokenizer_file is not None:
            kwargs["tokenizer_file"] = tokenizer_file
        else:
            raise missing_vocabulary(VOCABULARY)
        super().__init__(**kwargs)
        self.vocab_file = vocab_file

    def default_template(self) -> str:
        """Return the template of the chat models."""
        return "qwen_chat"


def read_ranks(path: str | Path) -> dict[bytes, int]:
    """Read a tiktoken file: lines of a token in base64 and its rank.

    Raises:
        UserError: the file is something else, or was cut short.
    """
    try:
        lines = [line.split() for line in Path(path).read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error) as error:
        raise _damaged(path) from error
    whole = sorted(ranks.values()) == list(range(len(lines)))
    if not (whole and all(bytes([byte]) in ranks for byte in range(256))):
        raise _damaged(path)
    return ranks


def build_tokenizer(ranks: dict[bytes, int]) -> Tokenizer:
    """Make the backend: tokens with the ids `ranks`, then the special ones."""
    spelling = bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(spelling[byte] for byte in token)

    vocab = {spell(token): rank for token, rank in ranks.items()}
    vocab.update({token: len(ranks) + place for place, token in enumerate(SPECIALS)})
    merges = [(spell(left), spell(right)) for left, right in list_merges(ranks)]
    tokenizer = Tokenizer(BPE(vocab, merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # found in the normalised text, as the original does: a combining mark behind one makes it something else
    tokenizer.add_tokens([AddedToken(token, normalized=True, special=True) for token in SPECIALS])
    return tokenizer


def list_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return the pairs that are joined, first what is joined first.

    Tiktoken joins the two neighbours whose union has the lowest rank, however the union is split; so every split of a
    token is a pair. (Of a token that can be made of tokens with lower ranks only one split ever occurs, the last step
    of that; words that were put into the vocabulary by hand may have others.)
    """
    splits = [
        (token[:place], token[place:])
        for token in sorted(ranks, key=ranks.__getitem__)
        for place in range(1, len(token))
    ]
    return [(left, right) for left, right in splits if left in ranks and right in ranks]


def _damaged(path: str | Path) -> UserError:
    return UserError(f"{path} is not a tiktoken file, or was cut short.", "Download the tokenizer again.")
