"""The tokenizer of a family that cuts text with a sentencepiece BPE file, exact and fast."""

from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer, decoders, normalizers

from xtuner.errors import UserError
from xtuner.model.tokenizers.family import FamilyTokenizer, missing_vocabulary, plain_token
from xtuner.model.tokenizers.sentencepiece import SentencePieceModel, build_bpe, load_sentencepiece


class SentencePieceTokenizer(FamilyTokenizer):
    """BPE with byte fallback; texts are not normalised and get no leading space.

    User-defined pieces such as `<eoa>` are found in any text before it is cut.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model", "tokenizer_file": "tokenizer.json"}  # noqa: RUF012

    FIRST_SPACED: ClassVar[bool] = False
    """Whether `decode` puts its space also where the special token is the first."""

    def __init__(
        self,
        vocab_file: str | None = None,
        tokenizer_file: str | None = None,
        unk_token: str | AddedToken = "<unk>",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        pad_token: str | AddedToken | None = None,
        add_bos_token: bool = False,
        add_eos_token: bool = False,
        **kwargs: Any,
    ) -> None:
        """Build from `vocab_file` (sentencepiece), or from `tokenizer_file` where that is all there is.

        Raises:
            UserError: neither is there, or the file is of another kind.
        """
        if vocab_file is not None:
            added = {int(index): token for index, token in kwargs.pop("added_tokens_decoder", {}).items()}
            model = load_model(vocab_file)
            kwargs["tokenizer_object"] = self.build(model, added)
            beyond = {index: token for index, token in added.items() if index >= len(model.pieces)}
            kwargs["added_tokens_decoder"] = beyond
        elif tokenizer_file is not None:
            kwargs["tokenizer_file"] = tokenizer_file
        else:
            raise missing_vocabulary(self.VOCABULARY)
        super().__init__(
            unk_token=plain_token(unk_token),
            bos_token=plain_token(bos_token),
            eos_token=plain_token(eos_token),
            pad_token=plain_token(pad_token),
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            **kwargs,
        )
        self.vocab_file = vocab_file

    @classmethod
    def build(cls, model: SentencePieceModel, added: dict[int, AddedToken]) -> Tokenizer:
        """Make the backend; `added` are the tokens that tokenizer_config.json lists."""
        tokens = {
            index: AddedToken(piece.text, normalized=False, special=piece.kind != "user_defined")
            for index, piece in enumerate(model.pieces)
            if piece.kind in ("unknown", "control", "user_defined")
        }
        return build_tokenizer(model, {}, tokens)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **kwargs: Any,
    ) -> str:
        """As the original classes do: where special tokens are shown, a space opens the text that one of them ends."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        ends = [place for place, index in enumerate(ids) if index in self.all_special_ids]
        if skip_special_tokens or not spaces_between_special_tokens or not ends:
            return super()._decode(ids, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
        parts, begin = [], 0
        for end in ends:
            if end > begin or (end == 0 and self.FIRST_SPACED):
                parts.append(" ")
            parts.append(super()._decode(ids[begin : end + 1], False, clean_up_tokenization_spaces, **kwargs))
            begin = end + 1
        return "".join(parts) + super()._decode(ids[begin:], False, clean_up_tokenization_spaces, **kwargs)


def load_model(vocab_file: str | Path) -> SentencePieceModel:
    """Read the file of a tokenizer of this kind.

    Raises:
        UserError: it is none, or one of another kind.
    """
    model = load_sentencepiece(vocab_file)
    if not (model.bpe and model.identity and not model.dummy_prefix):
        raise UserError(
            f"{vocab_file} is not a tokenizer of the kind that this model has.", "Use the tokenizer of the model."
        )
    return model


def build_tokenizer(model: SentencePieceModel, names: dict[int, str], tokens: dict[int, AddedToken]) -> Tokenizer:
    """Make the backend: pieces of `model`, with the texts of `names` where it has an id, and `tokens` found in any
    text before it is cut."""
    tokenizer = Tokenizer(build_bpe(model, names))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([tokens[index] for index in sorted(tokens)])
    return tokenizer
