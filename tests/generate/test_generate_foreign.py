"""What a published checkpoint brings besides weights: settings of other programs, and program code."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_tiny_internlm2, make_tiny_llama

from xtuner.checkpoint.adapter import write_adapter
from xtuner.cli.main import main
from xtuner.conversation.chat_model import Sampling
from xtuner.conversation.message import Message
from xtuner.generate.load import load_chat
from xtuner.model.foreign_code import announce_code, name_code

CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path({mark!r}).touch()
class TheirConfig(LlamaConfig):
    model_type = "unheard_of"
class TheirModel(LlamaForCausalLM):
    config_class = TheirConfig
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A model of an unknown kind, with a program that leaves a mark when it runs."""
    folder = make_tiny_llama(tmp_path / "theirs")
    (folder / "their_code.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "their_code.TheirConfig", "AutoModelForCausalLM": "their_code.TheirModel"}
    config |= {"model_type": "unheard_of", "architectures": ["TheirModel"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_settings_of_other_programs_stop_nothing(tmp_path: Path) -> None:
    """Keys that nobody knows, and known ones that the library refuses."""
    folder = make_tiny_internlm2(tmp_path)
    plain = load_chat(folder, tell=lambda text: None)
    settings = {
        "eos_token_id": [2, 747],
        "do_sample": False,
        "temperature": 0.6,
        "top_p": 5,
        "early_stopping": "yes",
        "chat_format": "chatml",
        "max_window_size": 6144,
        "stop_words_ids": [[1]],
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    chat = load_chat(folder, tell=lambda text: None)
    assert {2, 747} <= chat._stop_ids
    question, sampling = [Message("user", "你好")], Sampling(max_new_tokens=6)
    assert [piece.text for piece in chat.stream(question, sampling)] == [
        piece.text for piece in plain.stream(question, sampling)
    ], "what is typed counts, not what the file says"


def test_foreign_code_runs_when_asked_for_by_name(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    words = ["chat", str(theirs), "--prompt", "hi", "--prompt-template", "default", "--max-new-tokens", "2"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "brings its own program code" in said
    assert "add: --trust-remote-code" in said
    assert not (tmp_path / "ran").exists()
    modules = dict(sys.modules)
    assert main([*words, "--trust-remote-code"]) == 0
    for name in set(sys.modules) - set(modules):
        if name.startswith("transformers_modules"):
            del sys.modules[name]
    assert "Running program code that comes with" in (shown := capsys.readouterr().err)
    assert "their_code.py" in shown
    assert (tmp_path / "ran").exists()


def test_each_command_says_how_to_ask(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.json"
    data.write_text('[{"text": "a b c"}]')
    run = ["train", "--model", str(theirs), "--data", str(data), f"data.cache={tmp_path / 'cache'}"]
    assert main([*run, "--work-dir", str(tmp_path / "w")]) == 1
    assert "add: model.trust_remote_code=true" in capsys.readouterr().err
    settings = json.loads((theirs / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["their_code.Slow", None]}, "tokenizer_class": "Slow"}
    (theirs / "tokenizer_config.json").write_text(json.dumps(settings))
    write_adapter(tmp_path / "adapter", {"r": 1, "target_modules": ["q_proj"]}, {"x": torch.zeros(1)})
    assert main(["convert", "merge", str(theirs), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 1
    assert "add: --trust-remote-code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_known_family_never_needs_it(theirs: Path, tmp_path: Path) -> None:
    told: list[str] = []
    known = make_tiny_internlm2(tmp_path / "known")
    announce_code(str(known), told.append)
    assert told == [f"{known} is of a kind that is known here: none of its program code runs."]
    assert [name.split()[0] for name in name_code(str(theirs))] == ["their_code.py"]
    settings = json.loads((theirs / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["lab/other--their_tokens.Slow", None]}
    (theirs / "tokenizer_config.json").write_text(json.dumps(settings))
    assert [name.split()[0] for name in name_code(str(theirs))] == ["lab/other--their_tokens.py", "their_code.py"]
