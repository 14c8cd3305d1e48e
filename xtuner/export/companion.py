"""The files beside the weights: config, tokenizer, chat template, generation config, where other programs look."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from xtuner.checkpoint.folder import WEIGHTS, writing
from xtuner.conversation.jinja import to_jinja
from xtuner.conversation.template import ChatTemplate
from xtuner.errors import UserError
from xtuner.model.register import find_tokenizer

SUFFIXES = (".json", ".model", ".txt", ".py", ".jinja", ".tiktoken", ".vocab", ".bpe")
NAMES = re.compile(r"(LICENSE|LICENCE|NOTICE|USE_POLICY|COPYING)(\..*)?", re.IGNORECASE)
TOKENIZER = re.compile(
    r"tokenizer.*|tokenization_.*|special_tokens_map\.json|added_tokens\.json|chat_template\..*|vocab.*|merges\.txt"
    r"|.*\.(model|tiktoken|bpe)"
)
"""Names of the files of a tokenizer."""
REWRITTEN = ("config.json", "generation_config.json", "tokenizer_config.json")
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
"""Files that would win over the template in tokenizer_config.json."""
OF_ADAPTERS = ("adapter_config.json", "run.json")
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


@dataclass(frozen=True)
class Speech:
    """How the exported model reads and speaks: its tokenizer, and the template it was trained with."""

    tokenizer: Any
    folder: Path
    """Where the tokenizer's files are."""
    template: ChatTemplate | None = None
    """None: the chat template that the tokenizer brings stays."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Special tokens that differ from the tokenizer's files."""
    renewed: bool = False
    """The tokenizer has tokens that its files do not know."""


def write_companions(
    base: Path,
    folder: Path,
    words: Speech,
    *,
    dtype: torch.dtype | None = None,
    changes: Mapping[str, Any] | None = None,
    tell: Callable[[str], None],
) -> None:
    """Copy what belongs to the model in `base` into `folder`, and write down what has changed.

    config.json gets `dtype` and `changes`; tokenizer_config.json the chat template; generation_config.json every id
    that ends an answer, also those of the template's stop words, since servers stop at nothing else.

    Raises:
        UserError: no config.json, or the disk is full.
    """
    config = {**read_config_json(base), **(changes or {})}
    if dtype is not None:
        config.pop("dtype", None)  # the key of transformers 5; everyone reads the older one
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
    settings = {**(_read(words.folder / "tokenizer_config.json") or {}), **words.options}
    if words.template is not None:
        settings["chat_template"] = to_jinja(words.template)
    stop_words = words.template.stop_words if words.template else ()
    with writing(folder):
        for file in _files(base, words):
            shutil.copyfile(file, folder / file.name)
        _write(folder / "config.json", _without_dangling_code(config, base))
        settings = _without_dangling_code(settings, words.folder)
        of_ours = find_tokenizer(config.get("model_type"), settings.get("tokenizer_class")) is not None
        if words.renewed or ("auto_map" not in settings and of_ours):
            # nobody else knows the class, and its program is not here: write the form that every reader knows
            words.tokenizer.save_pretrained(folder)
            own = {key: settings[key] for key in ("chat_template", *words.options) if key in settings}
            settings = {**(_read(folder / "tokenizer_config.json") or {}), **own}
            if words.template is not None and settings.get("split_special_tokens"):
                settings["split_special_tokens"] = False  # the template spells them out
        _write(folder / "tokenizer_config.json", settings)
        _write(
            folder / "generation_config.json", generation_config(base, config, words.tokenizer, stop_words, tell=tell)
        )


def _files(base: Path, words: Speech) -> list[Path]:
    """What is copied as it is: of the base everything that is no weight, and the tokenizer from where it is."""
    found = [file for file in sorted(base.iterdir()) if file.is_file() and _belongs(file.name)]
    if words.folder != base:
        other = [file for file in sorted(words.folder.iterdir()) if file.is_file() and _belongs(file.name)]
        found = [file for file in found if not TOKENIZER.fullmatch(file.name)]
        found += [file for file in other if TOKENIZER.fullmatch(file.name)]
    return [file for file in found if words.template is None or file.name not in CHAT_TEMPLATES]


def read_config_json(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder.

    Raises:
        UserError: missing or not JSON.
    """
    config = _read(folder / "config.json")
    if config is None:
        raise UserError(f"{folder} has no readable config.json, so it is not a model.", "Give the folder of a model.")
    return config


def vocabulary_key(config: Mapping[str, Any]) -> str:
    """Return what config.json calls the number of rows of the embedding."""
    return "padded_vocab_size" if "padded_vocab_size" in config else "vocab_size"


def generation_config(
    base: Path, config: Mapping[str, Any], tokenizer: Any, stop_words: Sequence[str], *, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Return the base's generation config, mended where transformers would refuse to save it again, with all ids that
    end an answer."""
    file = base / "generation_config.json"
    values = _read(file)
    if values is None:
        values = {}
        if file.exists():
            tell(f"{file} is not readable; a new one is written.")
    values.pop("_from_model_config", None)
    for key in ("bos_token_id", "pad_token_id"):
        if values.get(key) is None and config.get(key) is not None:
            values[key] = config[key]
    ends = [*_ids(values.get("eos_token_id")), *_ids(config.get("eos_token_id")), *_ids(tokenizer.eos_token_id)]
    for word in stop_words:
        ids = tokenizer.encode(word, add_special_tokens=False)
        ends += ids if len(ids) == 1 else []
    if ends:
        unique = list(dict.fromkeys(ends))
        values["eos_token_id"] = unique if len(unique) > 1 else unique[0]
    if _invalid(values):
        dropped = [key for key in SAMPLING if key in values] if not values.get("do_sample") else []
        values = {key: value for key, value in values.items() if key not in dropped}
        if _invalid(values):
            dropped = [key for key in values if not key.endswith("_token_id")]
            values = {key: value for key, value in values.items() if key.endswith("_token_id")}
        tell(f"The generation config of the base is invalid; left out of it: {', '.join(dropped)}.")
    return values


def _invalid(values: Mapping[str, Any]) -> bool:
    try:
        GenerationConfig(**values).validate(strict=True)
    except (ValueError, TypeError):
        return True
    return False


def _ids(value: Any) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [int(value)]


def _belongs(name: str) -> bool:
    if WEIGHTS.fullmatch(name) or name.endswith(".index.json") or name in (*REWRITTEN, *OF_ADAPTERS):
        return False
    return name.endswith(SUFFIXES) or NAMES.fullmatch(name) is not None


def _without_dangling_code(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Drop `auto_map` entries that name program files which the folder does not have."""

    def is_there(entry: Any) -> bool:
        if isinstance(entry, list | tuple):
            return all(is_there(one) for one in entry)
        return entry is None or "--" in entry or (folder / f"{entry.split('.')[0]}.py").is_file()

    if isinstance(values.get("auto_map"), dict):
        kept = {key: entry for key, entry in values["auto_map"].items() if is_there(entry)}
        values = {key: value for key, value in values.items() if key != "auto_map"}
        if kept:
            values["auto_map"] = kept
    return values


def _read(file: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _write(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
