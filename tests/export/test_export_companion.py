"""What stands beside the weights, for transformers, vLLM and LMDeploy to find."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_tiny_internlm2
from transformers import AutoTokenizer, GenerationConfig

from xtuner.conversation.builtin import find_template
from xtuner.errors import UserError
from xtuner.export.companion import Speech, read_config_json, write_companions
from xtuner.model.load import load_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_tiny_internlm2(tmp_path / "base")


def written(base: Path, folder: Path, template: str | None = "internlm2_chat", **options: Any) -> list[str]:
    folder.mkdir(exist_ok=True)
    told: list[str] = []
    words = Speech(load_tokenizer(str(base)), base, find_template(template) if template else None)
    write_companions(base, folder, words, tell=told.append, **options)
    return told


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def set_generation(base: Path, **values: Any) -> None:
    (base / "generation_config.json").write_text(json.dumps(values))


def test_what_is_copied(base: Path, tmp_path: Path) -> None:
    """Everything of the model but weights, old indices, the card of the base and stray files; tokenizer.json is new."""
    for name in (
        *(
            "LICENSE",
            "modeling_internlm2.py",
            "configuration_internlm2.py",
            "merges.txt",
            "README.md",
            ".gitattributes",
        ),
        *("pytorch_model.bin.index.json", "model-00001-of-00002.safetensors", "notes.pdf", "consolidated.pth"),
    ):
        (base / name).write_text("{}")
    written(base, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("LICENSE", "modeling_internlm2.py", "configuration_internlm2.py", "merges.txt"),
        *(
            "tokenizer.json",
            "config.json",
            "generation_config.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "special_tokens_map.json",
        ),
    }


def test_the_trained_template_replaces_the_old_one(base: Path, tmp_path: Path) -> None:
    (base / "chat_template.jinja").write_text("old, and it would win")
    written(base, tmp_path / "out", template="vicuna")
    text = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    assert text == "<s>USER: hi ASSISTANT:"
    written(base, tmp_path / "kept", template=None)
    assert (tmp_path / "kept" / "chat_template.jinja").read_text() == "old, and it would win"


def test_every_id_that_ends_an_answer(base: Path, tmp_path: Path) -> None:
    set_generation(base, eos_token_id=[5, 2], temperature=0.3, do_sample=True, _from_model_config=True)
    assert written(base, tmp_path / "out") == []
    values = read(tmp_path / "out" / "generation_config.json")
    assert values["eos_token_id"] == [5, 2, 750]
    assert values["temperature"] == 0.3
    assert values["bos_token_id"] == 1
    assert "_from_model_config" not in values
    written(base, tmp_path / "plain", template=None)
    assert read(tmp_path / "plain" / "generation_config.json")["eos_token_id"] == [5, 2]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.7, "top_p": 0.9, "do_sample": False, "max_new_tokens": 99},
        {"temperature": 0.7},
        {"max_new_tokens": -5},
        {"early_stopping": 3, "num_beams": 0},
    ],
)
def test_an_invalid_generation_config_never_blocks(base: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    """#794: transformers refuses to save what some published models carry."""
    set_generation(base, eos_token_id=2, **values)
    told = written(base, tmp_path / "out")
    assert "invalid" in told[0]
    config = GenerationConfig.from_pretrained(tmp_path / "out")
    config.save_pretrained(tmp_path)
    assert config.eos_token_id == [2, 750]
    if "do_sample" in values:
        assert config.max_new_tokens == 99, "what is valid stays"


def test_a_broken_generation_config_is_replaced(base: Path, tmp_path: Path) -> None:
    (base / "generation_config.json").write_text("{broken")
    assert "not readable" in written(base, tmp_path / "out")[0]
    assert read(tmp_path / "out" / "generation_config.json")["eos_token_id"] == [2, 750]


def test_program_files_that_are_not_there_are_not_promised(base: Path, tmp_path: Path) -> None:
    config = {**read(base / "config.json"), "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"}}
    (base / "config.json").write_text(json.dumps({**config, "auto_map": {**config["auto_map"], "X": "org/repo--y.Z"}}))
    written(base, tmp_path / "out")
    assert read(tmp_path / "out" / "config.json")["auto_map"] == {"X": "org/repo--y.Z"}
    assert "auto_map" not in read(tmp_path / "out" / "tokenizer_config.json")
    (base / "configuration_internlm2.py").write_text("")
    written(base, tmp_path / "out")
    assert "AutoConfig" in read(tmp_path / "out" / "config.json")["auto_map"]


def test_another_tokenizer(base: Path, tmp_path: Path) -> None:
    other = make_tiny_internlm2(tmp_path / "other")
    settings = read(other / "tokenizer_config.json")
    (other / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 77}))
    (other / "config.json").write_text('{"model_type": "internlm2", "other": true}')
    words = Speech(load_tokenizer(str(other)), other, None, {"eos_token": "<|im_end|>"})
    (tmp_path / "out").mkdir()
    write_companions(base, tmp_path / "out", words, changes={"vocab_size": 800}, tell=print)
    assert read(tmp_path / "out" / "tokenizer_config.json")["model_max_length"] == 77
    assert read(tmp_path / "out" / "tokenizer_config.json")["eos_token"] == "<|im_end|>"
    assert "other" not in read(tmp_path / "out" / "config.json")
    assert read(tmp_path / "out" / "config.json")["vocab_size"] == 800


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no readable config\.json"):
        read_config_json(tmp_path)
