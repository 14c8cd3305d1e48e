"""The tokenizer of InternLM (7B, 20B)."""

from typing import Any

from xtuner.model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer


class InternLMTokenizer(SentencePieceTokenizer):
    """Texts begin with `<s>`; `<eoh>`, `<eoa>` and `<TOKENS_UNUSED_n>` are pieces of their own."""

    FIRST_SPACED = True

    def __init__(self, vocab_file: str | None = None, tokenizer_file: str | None = None, **kwargs: Any) -> None:
        """Build from the file of the checkpoint."""
        super().__init__(vocab_file, tokenizer_file, **{"pad_token": "</s>", "add_bos_token": True, **kwargs})

    def default_template(self) -> str:
        """Return the template of the chat models."""
        return "internlm_chat"
