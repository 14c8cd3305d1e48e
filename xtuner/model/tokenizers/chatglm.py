"""The tokenizer of ChatGLM2 and ChatGLM3: sentencepiece BPE behind [gMASK] and sop."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer, decoders, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding

from xtuner.errors import UserError
from xtuner.model.tokenizers.family import FamilyTokenizer, missing_vocabulary, plain_token
from xtuner.model.tokenizers.sentencepiece import build_bpe, load_sentencepiece

COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
"""Special tokens in the order of their ids, which follow those of the sentencepiece file."""
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
"""Further ones of ChatGLM3."""
ENDS = ("</s>", "<|user|>", "<|observation|>")
"""Tokens with which an answer ends: those with which another turn begins are among them."""
ALIASES = {"<bos>": "<s>", "<eos>": "</s>", "<pad>": "<unk>"}
SECOND = re.compile(r"chatglm2(?!.*chatglm3)", re.IGNORECASE)
"""In the name of a second-generation model, whose files say nowhere else that it has no roles."""


class ChatGLMTokenizer(FamilyTokenizer):
    """A space is put before every text, [gMASK] and sop before every sequence, padding on the left.

    Special tokens spelled out in a text are text, unless `encode_special_tokens` says otherwise.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model", "tokenizer_file": "tokenizer.json"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask", "position_ids"]  # noqa: RUF012
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | None = None,
        tokenizer_file: str | None = None,
        unk_token: str | AddedToken = "<unk>",
        eos_token: str | AddedToken = "</s>",
        pad_token: str | AddedToken | None = "<unk>",
        encode_special_tokens: bool = False,
        **kwargs: Any,
    ) -> None:
        """Build from `vocab_file` (sentencepiece), or from `tokenizer_file` where that is all there is.

        Raises:
            UserError: neither is there, or the file is of another kind.
        """
        if vocab_file is not None:
            named = {str(token) for token in kwargs.pop("added_tokens_decoder", {}).values()}
            second = is_second(str(kwargs.get("name_or_path", ""))) and not named.intersection(ROLES)
            kwargs["tokenizer_object"] = build_tokenizer(vocab_file, COMMANDS if second else COMMANDS + ROLES)
        elif tokenizer_file is not None:
            kwargs["tokenizer_file"] = tokenizer_file
        else:
            raise missing_vocabulary(self.VOCABULARY)
        kwargs.setdefault("split_special_tokens", not encode_special_tokens)
        kwargs.pop("bos_token", None)  # [gMASK] and sop are what begins a text, whatever a file says
        super().__init__(
            unk_token=plain_token(unk_token),
            eos_token=plain_token(eos_token),
            pad_token=plain_token(pad_token),
            **kwargs,
        )
        self.vocab_file = vocab_file

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, special ones included."""
        return len(self)

    def default_template(self) -> str:
        """Return the template of the chat models."""
        return "chatglm3" if "<|user|>" in self.get_vocab() else "chatglm2"

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """As everywhere; the words for roles that a template writes are special tokens."""
        kwargs["tokenizer_kwargs"] = {"split_special_tokens": False, **(kwargs.get("tokenizer_kwargs") or {})}
        return super().apply_chat_template(*args, **kwargs)

    def get_command(self, token: str) -> int:
        """Return the id of a special token, also for the words <bos>, <eos>, <pad>.

        Raises:
            KeyError: there is no such token.
        """
        index: int = self.get_vocab()[ALIASES.get(token, token)]
        return index

    def build_single_message(self, role: str, metadata: str, message: str) -> list[int]:
        """Return the ids of one message as ChatGLM3 was trained on it."""
        texts = [self.encode(text, add_special_tokens=False) for text in (f"{metadata}\n", message)]
        return [self.get_command(f"<|{role}|>"), *texts[0], *texts[1]]

    def build_chat_input(
        self, query: str, history: Sequence[Mapping[str, Any]] | None = None, role: str = "user"
    ) -> BatchEncoding:
        """Return the tensors (1, T) of a conversation in ChatGLM3's own form, open for the answer.

        `history` are messages {"role", "content"}, with "metadata" and for a system message "tools" if they have any.
        """
        ids = [self.get_command("[gMASK]"), self.get_command("sop")]
        for item in history or ():
            content = item["content"]
            if item["role"] == "system" and "tools" in item:
                content += "\n" + json.dumps(item["tools"], indent=4, ensure_ascii=False)
            ids += self.build_single_message(item["role"], item.get("metadata", ""), content)
        ids += [*self.build_single_message(role, "", query), self.get_command("<|assistant|>")]
        row = {"input_ids": ids, "attention_mask": [1] * len(ids), "position_ids": list(range(len(ids)))}
        return BatchEncoding(row, tensor_type="pt", prepend_batch_axis=True)

    def _convert_encoding(self, encoding: Encoding, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], list[Encoding]]:
        values, encodings = super()._convert_encoding(encoding, *args, **kwargs)
        values["position_ids"] = [_positions(one.attention_mask) for one in encodings]
        return values, encodings

    def _pad(self, encoded_inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        padded: dict[str, Any] = super()._pad(encoded_inputs, *args, **kwargs)
        if "position_ids" in padded and "attention_mask" in padded:
            padded["position_ids"] = _positions(padded["attention_mask"])
        return padded

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, *args: Any, **kwargs: Any) -> str:
        """As the original class does: what may be left out are `</s>` and what else ends an answer, no commands."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        if skip_special_tokens:
            ends = {index for token in ENDS if (index := self.backend_tokenizer.token_to_id(token)) is not None}
            ids = [index for index in ids if index not in ends.union(self.all_special_ids)]
        return super()._decode(ids, False, *args, **kwargs)


def is_second(name: str) -> bool:
    """Whether a model of this name is of the second generation."""
    return SECOND.search(name) is not None


def build_tokenizer(vocab_file: str | Path, commands: tuple[str, ...]) -> Tokenizer:
    """Make the backend: pieces of `vocab_file`, then `commands`.

    Raises:
        UserError: the file is of another kind.
    """
    model = load_sentencepiece(vocab_file)
    if not (model.bpe and model.identity and model.dummy_prefix):
        raise UserError(f"{vocab_file} is not the tokenizer of ChatGLM2 or 3.", "Use the tokenizer of the model.")
    tokenizer = Tokenizer(build_bpe(model, {}))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=piece.kind != "user_defined")
            for piece in model.pieces
            if piece.kind in ("unknown", "control", "user_defined")
        ]
    )
    # Words such as philosophy hold "sop". Where no token for a role follows it, a space has to part it from the text.
    alone = {"rstrip": True} if "<|user|>" not in commands else {}
    tokens = [
        AddedToken(word, normalized=False, special=True, **({"single_word": True, **alone} if word.isalpha() else {}))
        for word in commands
    ]
    tokenizer.add_tokens(tokens)
    prefix = [(word, tokenizer.token_to_id(word)) for word in ("[gMASK]", "sop")]
    tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] sop $A",
        pair="[gMASK] sop $A $B </s>",
        special_tokens=[*prefix, ("</s>", tokenizer.token_to_id("</s>"))],
    )
    return tokenizer


def _positions(attention_mask: Sequence[int]) -> list[int]:
    """Count the real tokens of a row; padding before them has 0."""
    padding = len(attention_mask) - sum(attention_mask)
    return [max(place - padding, 0) for place in range(len(attention_mask))]
