"""Which template a checkpoint speaks, from its small files alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xtuner.conversation.builtin import TEMPLATES
from xtuner.conversation.detect import (
    BY_FAMILY,
    BY_NAME,
    BY_TOKEN,
    SIGNS,
    advise_template,
    detect_template,
    detect_text,
    usual_template,
)
from xtuner.conversation.jinja import to_jinja

GOLDEN = Path(__file__).parents[1] / "golden"

# the telling parts of the chat templates that these families publish
PUBLISHED = [
    ("llama", "{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + content + '<|eot_id|>' }}", "llama3_chat"),
    (
        "llama",
        "{{ '[INST] <<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content + ' [/INST]' }}",
        "llama2_chat",
    ),
    ("mistral", "{{ '[INST] ' + content + ' [/INST]' }}", "mistral"),
    ("mixtral", "{{ '[INST] ' + content + ' [/INST]' }}", "mixtral"),
    ("gemma", "{{ '<start_of_turn>' + role + '\\n' + content + '<end_of_turn>\\n' }}", "gemma"),
    ("phi3", "{{ '<|user|>\\n' + content + '<|end|>\\n<|assistant|>\\n' }}", "phi3_chat"),
    ("mistral", "{{ '<|user|>\\n' + content + eos_token + '<|assistant|>' }}", "zephyr"),
    ("cohere", "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content + '<|END_OF_TURN_TOKEN|>' }}", "cohere_chat"),
    ("qwen2", "{{ '<|im_start|>' + role + '\\n' + content + '<|im_end|>' }}", "qwen_chat"),
    ("internlm2", "{{ '<|im_start|>' + role + '\\n' + content + '<|im_end|>' }}", "internlm2_chat"),
    ("llama", "{{ '<|im_start|>' + role + '\\n' + content + '<|im_end|>' }}", "internlm2_chat"),
    ("chatglm", "{{ '[gMASK]sop<|' + role + '|>\\n ' + content + '<|assistant|>' }}", "chatglm3"),
    ("minicpm", "{{ '<用户>' + content + '<AI>' }}", "minicpm"),
    ("deepseek_v2", "{{ 'User: ' + content + '\\n\\n' + 'Assistant:' }}", "deepseek_v2"),
    ("llama", "You are DeepSeek Coder ### Instruction:\n ### Response:", "deepseek_coder"),
    ("llama", "{{ 'USER: ' + content + ' ASSISTANT:' }}", "vicuna"),
    ("llama", "{{ content }}", None),
]


def checkpoint(folder: Path, config: dict[str, Any] | None = None, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {"config": config or {}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("family", "text", "expected"), PUBLISHED, ids=lambda value: str(value)[:20])
def test_published_chat_templates(family: str, text: str, expected: str | None, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", {"model_type": family}, tokenizer_config={"chat_template": text})
    assert detect_template(folder) == expected
    assert detect_text(text, family) == expected


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_what_we_wrote_is_recognised_exactly(name: str, tmp_path: Path) -> None:
    text = to_jinja(TEMPLATES[name])
    folder = checkpoint(tmp_path / "m", {"model_type": "llama"}, tokenizer_config={"chat_template": text})
    assert detect_template(folder) == name
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    assert detect_template(folder) == name


def test_fixtures() -> None:
    assert detect_template(GOLDEN / "internlm2") == "internlm2_chat"
    assert detect_template(GOLDEN / "internlm2_tok_old") is None
    assert detect_template(GOLDEN / "llama_tokenizer") is None


def test_special_tokens_tell_where_no_chat_template_is_written(tmp_path: Path) -> None:
    added = {"5": {"content": "<|im_start|>"}}
    folder = checkpoint(tmp_path / "a", {"model_type": "internlm2"}, tokenizer_config={"added_tokens_decoder": added})
    assert detect_template(folder) == "internlm2_chat"
    folder = checkpoint(tmp_path / "b", {"model_type": "qwen2"}, added_tokens={"<|im_start|>": 7})
    assert detect_template(folder) == "qwen_chat"
    listed = {"added_tokens": [{"content": "<|start_header_id|>"}]}
    assert detect_template(checkpoint(tmp_path / "c", {"model_type": "llama"}, tokenizer=listed)) == "llama3_chat"
    named = {"additional_special_tokens": ["<|end|>"]}
    folder = checkpoint(tmp_path / "d", {"model_type": "phi3"}, special_tokens_map=named)
    assert detect_template(folder) == "phi3_chat"
    folder = checkpoint(
        tmp_path / "e", {"model_type": "gpt2"}, tokenizer_config={"extra_special_tokens": {"x": "<|y|>"}}
    )
    assert detect_template(folder) is None


def test_names_tell_where_nothing_else_does(tmp_path: Path) -> None:
    assert (
        detect_template(checkpoint(tmp_path / "internlm2-chat-1_8b", {"model_type": "internlm2"})) == "internlm2_chat"
    )
    assert detect_template(checkpoint(tmp_path / "internlm2-1_8b", {"model_type": "internlm2"})) is None
    config = {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm2-6b"}
    assert detect_template(checkpoint(tmp_path / "x", config)) == "chatglm2"
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "internlm2-chat-1_8b")
    assert detect_template(link) == "internlm2_chat"


def test_baichuan_chat_models_know_a_user_token(tmp_path: Path) -> None:
    generation = {"user_token_id": 195}
    config = {"model_type": "baichuan", "vocab_size": 125696}
    assert detect_template(checkpoint(tmp_path / "a", config, generation_config=generation)) == "baichuan2_chat"
    config = {"model_type": "baichuan", "vocab_size": 728, "tokenizer_class": "BaichuanTokenizer"}
    assert detect_template(checkpoint(tmp_path / "d", config, generation_config=generation)) == "baichuan2_chat"
    config = {"model_type": "baichuan", "vocab_size": 64000}
    assert detect_template(checkpoint(tmp_path / "b", config, generation_config=generation)) == "baichuan_chat"
    assert detect_template(checkpoint(tmp_path / "c", config)) is None


def test_broken_and_missing_files_count_as_absent(tmp_path: Path) -> None:
    assert detect_template(tmp_path / "nowhere") is None
    (tmp_path / "config.json").write_text("{ not json")
    (tmp_path / "tokenizer_config.json").write_text('["a list"]')
    (tmp_path / "special_tokens_map.json").write_text('{"additional_special_tokens": "a text"}')
    assert detect_template(tmp_path) is None


def test_every_row_names_a_template() -> None:
    named = [row[-1] for row in (*SIGNS, *BY_TOKEN, *BY_NAME)] + list(BY_FAMILY.values())
    assert [name for name in named if name not in TEMPLATES] == []


def test_the_room_loads_without_torch() -> None:
    modules = "builtin, chat_model, detect, encode, jinja, message, template"
    code = (
        f"import sys; from xtuner.conversation import {modules}; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("config", "usual"),
    [
        ({"model_type": "qwen"}, "qwen_chat"),
        ({"model_type": "internlm2"}, "internlm2_chat"),
        ({"model_type": "baichuan", "vocab_size": 64000}, "baichuan_chat"),
        ({"model_type": "baichuan", "vocab_size": 125696}, "baichuan2_chat"),
        ({"model_type": "chatglm"}, None),
        ({"model_type": "llama"}, None),
        ({}, None),
    ],
)
def test_a_base_model_is_offered_the_words_of_its_relatives(
    tmp_path: Path, config: dict[str, Any], usual: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert detect_template(tmp_path) is None
    assert usual_template(tmp_path) == usual
    advice = advise_template(tmp_path)
    assert advice.startswith(f"{usual}, which") if usual else advice.count(", ") > 20
