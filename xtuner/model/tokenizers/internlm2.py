"""The tokenizer of InternLM2 and 2.5."""

from typing import Any

from tokenizers import AddedToken, Tokenizer

from xtuner.model.tokenizers.sentencepiece import SentencePieceModel
from xtuner.model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer, build_tokenizer


class InternLM2Tokenizer(SentencePieceTokenizer):
    """Newer checkpoints lay special tokens such as `<|im_end|>` over reserved pieces (`added_tokens_decoder` of
    tokenizer_config.json). Reserved pieces without such a name never match text: the original fast class spells
    them out, and so do we. It is also what we follow in padding on the left and in decoding without further spaces.
    """

    padding_side = "left"

    def __init__(self, vocab_file: str | None = None, tokenizer_file: str | None = None, **kwargs: Any) -> None:
        """Build from the file of the checkpoint."""
        super().__init__(vocab_file, tokenizer_file, **{"pad_token": "</s>", "add_bos_token": True, **kwargs})

    @classmethod
    def build(cls, model: SentencePieceModel, added: dict[int, AddedToken]) -> Tokenizer:
        """Make the backend, with the names of `added` for the pieces below them."""
        overlay = {index: token for index, token in added.items() if index < len(model.pieces)}
        tokens = {
            index: AddedToken(piece.text, normalized=False, special=True)
            for index, piece in enumerate(model.pieces)
            if piece.kind in ("unknown", "control")
        }
        return build_tokenizer(
            model, {index: str(token.content) for index, token in overlay.items()}, {**tokens, **overlay}
        )

    def default_template(self) -> str:
        """Return the template of the chat models."""
        return "internlm2_chat"

    def _decode(self, *args: Any, **kwargs: Any) -> str:
        return super()._decode(*args, **{**kwargs, "spaces_between_special_tokens": False})
