"""The tokenizer of Baichuan and Baichuan2 (7B, 13B)."""

from xtuner.model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer


class BaichuanTokenizer(SentencePieceTokenizer):
    """Nothing is put before a text; newline, tab and `<reserved_n>` are pieces of their own where the file says so."""

    def default_template(self) -> str:
        """Return the template of the chat models; the second generation is known by its piece for the newline."""
        return "baichuan2_chat" if "\n" in self.get_vocab() else "baichuan_chat"


class BaiChuanTokenizer(BaichuanTokenizer):
    """The same, as the first 7B model spells it."""
