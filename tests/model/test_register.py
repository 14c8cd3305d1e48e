"""`import xtuner.model` is all that a program needs, and what a config file says is the model, not how to run it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import xtuner.model  # noqa: F401  # as a user's program does
from xtuner.checkpoint.kind import KINDS, is_built_in
from xtuner.model.register import FAMILIES

GOLDEN = Path(__file__).parents[1] / "golden"
OPENING = """
import sys, xtuner.model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
path, trust = sys.argv[1], {"trust_remote_code": True}
model = AutoModelForCausalLM.from_pretrained(path, **trust)
tokenizer = AutoTokenizer.from_pretrained(path, **trust)
print(AutoConfig.from_pretrained(path, **trust).model_type, type(model).__module__, type(tokenizer).__module__)
"""


def test_one_import_is_enough():
    done = subprocess.run([sys.executable, "-c", OPENING, GOLDEN / "chatglm3"], capture_output=True, text=True)
    found = ["chatglm", "xtuner.model.families.chatglm", "xtuner.model.tokenizers.chatglm"]
    assert done.stdout.split() == found, done.stderr


def test_what_is_known_without_loading_needs_no_torch():
    code = "import sys, xtuner.checkpoint.describe, xtuner.config.lora_fields\n"
    code += "sys.exit(', '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_table_says_which_kinds_are_written_here():
    assert {kind for kind in KINDS if is_built_in(kind)} == set(FAMILIES)


@pytest.mark.parametrize("name", ["internlm2", "baichuan_13b"])
def test_a_config_file_does_not_say_how_to_run_a_model(name, tmp_path):
    """As published: InternLM2.5 asks for eager attention, Baichuan-13B for recomputation (by a list, which is true)."""
    for file in (GOLDEN / name).iterdir():
        (tmp_path / file.name).symlink_to(file)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    values |= {"attn_implementation": "flash_attention_2", "gradient_checkpointing": [False]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config._attn_implementation == "sdpa"
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    asked = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert asked.config._attn_implementation == "eager"
