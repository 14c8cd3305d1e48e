"""What the tokenizers of our own families share: how their folders are read, and written so that all can read them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from xtuner.conversation.builtin import find_template
from xtuner.conversation.jinja import to_jinja
from xtuner.errors import UserError

CONFIG_FILE = "tokenizer_config.json"
FAST_FILE = "tokenizer.json"


class FamilyTokenizer(PreTrainedTokenizerFast):
    """A tokenizer that is built from the vocabulary file of the original checkpoint."""

    VOCABULARY: ClassVar[str] = "tokenizer.model"
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    vocab_file: str | None

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Take the files as they are; `__init__` reads them."""
        return kwargs

    def default_template(self) -> str | None:
        """Return the name of the chat template that a saved folder carries where the original has none."""
        return None

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[str, ...]:
        """Write a folder that opens without this package: tokenizer.json, a config naming the generic class with
        a chat template inside, and the original vocabulary file."""
        folder = Path(save_directory)
        kwargs.setdefault("save_jinja_files", False)  # older readers look for the template in the config only
        written = super().save_pretrained(str(folder), **kwargs)
        file = folder / CONFIG_FILE
        config = json.loads(file.read_text(encoding="utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["padding_side"] = self.padding_side  # the generic class pads on the right
        config.pop("auto_map", None)
        if "extra_special_tokens" in config:  # transformers 4 expects a mapping under the new name
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
        name = self.default_template()
        if name is not None and not self.chat_template:
            config["chat_template"] = to_jinja(find_template(name))
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        if self.vocab_file is None:
            return written
        copy = folder / self.VOCABULARY
        if not (copy.exists() and copy.samefile(self.vocab_file)):
            shutil.copyfile(self.vocab_file, copy)
        return (*written, str(copy))


def missing_vocabulary(name: str) -> UserError:
    """Return the error for a folder that holds neither a vocabulary called `name` nor a tokenizer.json."""
    return UserError(f"The tokenizer file {name} is missing.", "Copy it from the original model.")


def plain_token(token: str | AddedToken | None) -> AddedToken | None:
    """Return `token` as one that is found in any text, whatever stands beside it.

    The files of the older families carry flags (`single_word`) that their own programs never looked at.
    """
    return None if token is None else AddedToken(str(token), normalized=False, special=True)
