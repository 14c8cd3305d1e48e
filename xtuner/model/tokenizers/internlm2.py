"""The tokenizer of InternLM2 and 2.5, exact and fast, built from the sentencepiece file of the checkpoint."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from transformers import PreTrainedTokenizerFast

from xtuner.errors import UserError
from xtuner.model.tokenizers.sentencepiece import build_bpe, load_sentencepiece

MODEL_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"


class InternLM2Tokenizer(PreTrainedTokenizerFast):
    """BPE with byte fallback; texts are not normalised and get no leading space.

    Newer checkpoints lay special tokens such as `<|im_end|>` over reserved pieces (`added_tokens_decoder` of
    tokenizer_config.json). Reserved pieces without such a name never match text: the original fast class spells
    them out, and so do we.
    """

    vocab_files_names = {"vocab_file": MODEL_FILE, "tokenizer_file": "tokenizer.json"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Take the files as they are; `__init__` reads them."""
        return kwargs

    def __init__(
        self,
        vocab_file: str | None = None,
        tokenizer_file: str | None = None,
        unk_token: str | AddedToken = "<unk>",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        pad_token: str | AddedToken | None = "</s>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        **kwargs: Any,
    ) -> None:
        """Build from `vocab_file` (sentencepiece), or from `tokenizer_file` where that is all there is."""
        if vocab_file is not None:
            overlay = {int(index): token for index, token in kwargs.get("added_tokens_decoder", {}).items()}
            kwargs["tokenizer_object"] = build_tokenizer(vocab_file, overlay)
        elif tokenizer_file is not None:
            kwargs["tokenizer_file"] = tokenizer_file
        else:
            raise UserError(f"The tokenizer file {MODEL_FILE} is missing.", "Copy it from the original model.")
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            **kwargs,
        )
        self.vocab_file = vocab_file

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[str, ...]:
        """Write a folder that opens without this package: tokenizer.json, a config naming the generic class with
        the chat template inside, and the original sentencepiece file."""
        folder = Path(save_directory)
        kwargs.setdefault("save_jinja_files", False)  # older readers look for the template in the config only
        written = super().save_pretrained(str(folder), **kwargs)
        file = folder / CONFIG_FILE
        config = json.loads(file.read_text(encoding="utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.pop("auto_map", None)
        if "extra_special_tokens" in config:  # transformers 4 expects a mapping under the new name
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        if self.vocab_file is None:
            return written
        copy = folder / MODEL_FILE
        if not (copy.exists() and copy.samefile(self.vocab_file)):
            shutil.copyfile(self.vocab_file, copy)
        return (*written, str(copy))


def build_tokenizer(vocab_file: str | Path, overlay: dict[int, AddedToken]) -> Tokenizer:
    """Make the backend: pieces of `vocab_file`, with the texts of `overlay` where it names an id.

    Raises:
        UserError: the file is no sentencepiece BPE model of this kind.
    """
    model = load_sentencepiece(vocab_file)
    if not (model.bpe and model.identity and not model.dummy_prefix):
        raise UserError(f"{vocab_file} is not the tokenizer of an InternLM2 model.", "Use the tokenizer of the model.")
    size = len(model.pieces)
    names = {index: str(token.content) for index, token in overlay.items() if index < size}
    tokenizer = Tokenizer(build_bpe(model, names))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = {
        index: AddedToken(piece.text, normalized=False, special=True)
        for index, piece in enumerate(model.pieces)
        if piece.kind in ("unknown", "control")
    }
    special.update({index: token for index, token in overlay.items() if index < size})
    tokenizer.add_tokens([special[index] for index in sorted(special)])
    return tokenizer
