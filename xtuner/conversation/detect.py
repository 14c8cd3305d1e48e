"""Owns the guess which named template a checkpoint was trained with; reads its small JSON files only."""

import json
import re
from pathlib import Path
from typing import Any

from xtuner.conversation.builtin import TEMPLATES
from xtuner.conversation.jinja import NAME

# words of a chat template (any of the texts must hold all words of a row) -> the template; the first row that fits wins
SIGNS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|start_header_id|>", "<|eot_id|>"), "llama3_chat"),
    (("<start_of_turn>",), "gemma"),
    (("<|START_OF_TURN_TOKEN|>",), "cohere_chat"),
    (("<|im_start|>",), "internlm2_chat"),
    (("<eoh>", "<eoa>"), "internlm_chat"),
    (("<|end|>", "<|assistant|>"), "phi3_chat"),
    (("[gMASK]", "<|assistant|>"), "chatglm3"),
    (("<|assistant|>", "eos_token"), "zephyr"),
    (("<<SYS>>",), "llama2_chat"),
    (("[INST]",), "mistral"),
    (("<reserved_106>",), "baichuan2_chat"),
    (("<reserved_102>",), "baichuan_chat"),
    (("<用户>", "<AI>"), "minicpm"),
    (("### Instruction:", "### Response:", "DeepSeek"), "deepseek_coder"),
    (("### Instruction:", "### Response:"), "wizardcoder"),
    (("USER:", "ASSISTANT:"), "vicuna"),
    (("User: ", "Assistant:"), "deepseek_v2"),
    (("[Round ",), "chatglm2"),
)

# two templates with the same words: the model type decides
BY_FAMILY: dict[tuple[str, str], str] = {
    ("internlm2_chat", "qwen"): "qwen_chat",
    ("mistral", "mixtral"): "mixtral",
}

BAICHUAN2_VOCABULARIES = {64000: False, 125696: True}
BAICHUAN2_KEYS = ("tokenizer_class", "z_loss_weight")
"""Sizes of the published models, and keys that a config.json of the second generation has, one of the first has not."""

# model types whose chat models are known by special tokens of their tokenizers where no chat template is written down
BY_TOKEN: tuple[tuple[str, str, str], ...] = (
    ("internlm2", "<|im_start|>", "internlm2_chat"),
    ("internlm3", "<|im_start|>", "internlm2_chat"),
    ("internlm", "<eoa>", "internlm_chat"),
    ("qwen", "<|im_start|>", "qwen_chat"),
    ("chatglm", "<|user|>", "chatglm3"),
    ("phi3", "<|end|>", "phi3_chat"),
    ("llama", "<|start_header_id|>", "llama3_chat"),
    ("gemma", "<start_of_turn>", "gemma"),
    ("cohere", "<|START_OF_TURN_TOKEN|>", "cohere_chat"),
    ("", "<|im_start|>", "internlm2_chat"),
)

# model types whose chat models are known by nothing but their names
BY_NAME: tuple[tuple[str, str, str], ...] = (
    ("internlm2", r"chat", "internlm2_chat"),
    ("internlm", r"chat", "internlm_chat"),
    ("qwen", r"chat|instruct", "qwen_chat"),
    ("chatglm", r"chatglm2", "chatglm2"),
    ("chatglm", r"chatglm3", "chatglm3"),
    ("baichuan", r"baichuan2.*chat", "baichuan2_chat"),
    ("baichuan", r"chat", "baichuan_chat"),
    ("deepseek_v2", r"chat|instruct", "deepseek_v2"),
    ("deepseek", r"chat", "deepseek_moe"),
    ("llama", r"deepseek.*coder.*instruct", "deepseek_coder"),
    ("llama", r"code-?llama.*instruct", "code_llama_chat"),
    ("llama", r"llama-?2.*chat", "llama2_chat"),
    ("llama", r"vicuna", "vicuna"),
    ("llama", r"wizardlm", "wizardlm"),
    ("minicpm", r"minicpm.*(sft|dpo)", "minicpm"),
    ("mixtral", r"instruct", "mixtral"),
    ("mistral", r"instruct", "mistral"),
    ("mistral", r"zephyr", "zephyr"),
    ("phi3", r"instruct", "phi3_chat"),
)


def detect_template(folder: Path | str) -> str | None:
    """Return the name of the template that the checkpoint in `folder` speaks, or None for a base model without signs.

    Looked at, in this order: the chat template of the tokenizer, its special tokens together with the model type, and
    the names of the folder and in config.json. Files that are missing or broken count as absent; nothing is imported.
    """
    folder = Path(folder)
    config = _json(folder / "config.json")
    family = str(config.get("model_type", "")).lower()
    found = detect_text(_chat_template(folder), family) or _by_token(folder, config, family)
    if found:
        return found
    names = " ".join((str(config.get("_name_or_path", "")), folder.name, folder.resolve().name)).lower()
    for prefix, pattern, template in BY_NAME:
        if family.startswith(prefix) and re.search(pattern, names):
            return template
    return None


def detect_text(text: str, family: str = "") -> str | None:
    """Return the name of the template that a chat template in Jinja spells, or None; `family`: the model type."""
    family = family.lower()
    ours = NAME.search(text)
    if ours and ours[1] in TEMPLATES:
        return ours[1]
    for words, template in SIGNS:
        if all(word in text for word in words):
            for (name, prefix), instead in BY_FAMILY.items():
                if template == name and family.startswith(prefix):
                    return instead
            return template
    return None


def usual_template(folder: Path | str) -> str | None:
    """Return the template that chat models of the same kind as a base model speak, if they all speak one."""
    config = _json(Path(folder) / "config.json")
    family = str(config.get("model_type", "")).lower()
    if family == "baichuan":
        return _baichuan(config)
    found = {template for prefix, _, template in BY_NAME if prefix == family}
    return found.pop() if len(found) == 1 else None


def advise_template(folder: Path | str) -> str:
    """Return which templates to offer for a model that shows none: that of its relatives, or all."""
    usual = usual_template(folder)
    return f"{usual}, which the chat models of its kind speak" if usual else ", ".join(sorted(TEMPLATES))


def _baichuan(config: dict[str, Any]) -> str:
    signs = any(config.get(key) is not None for key in BAICHUAN2_KEYS)
    second = config.get("norm_head", BAICHUAN2_VOCABULARIES.get(config.get("vocab_size", 0), signs))
    return "baichuan2_chat" if second else "baichuan_chat"


def _by_token(folder: Path, config: dict[str, Any], family: str) -> str | None:
    if family.startswith("baichuan") and "user_token_id" in _json(folder / "generation_config.json"):
        return _baichuan(config)
    if family.startswith("qwen") and _json(folder / "generation_config.json").get("chat_format") == "chatml":
        return "qwen_chat"
    tokens = _special_tokens(folder)
    for prefix, token, template in BY_TOKEN:
        if family.startswith(prefix) and token in tokens:
            return template
    return None


def _chat_template(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    template = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _special_tokens(folder: Path) -> set[str]:
    """Collect the texts of added tokens from every file that may list them."""
    settings = _json(folder / "tokenizer_config.json")
    tokens = set(_json(folder / "added_tokens.json"))
    listed = _items(settings.get("added_tokens_decoder"))
    for source in (settings, _json(folder / "special_tokens_map.json")):
        listed += _items(source.get("additional_special_tokens")) + _items(source.get("extra_special_tokens"))
    if not listed:
        listed = _items(_json(folder / "tokenizer.json").get("added_tokens"))
    for token in listed:
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            tokens.add(text)
    return tokens


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
