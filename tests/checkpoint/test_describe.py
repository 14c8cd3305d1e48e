"""What is said about a model without loading it is what loading it would show."""

import json
from pathlib import Path

import pytest
import torch
from stock import STOCK, VOCABULARY, is_known, save_model
from tiny import make_tiny_internlm2, make_tiny_qwen2
from transformers import AutoConfig, AutoModelForCausalLM

from xtuner.checkpoint.describe import describe_model, foreign_code, read_header
from xtuner.checkpoint.kind import KINDS
from xtuner.config.ref import Ref
from xtuner.errors import UserError
from xtuner.model.lora import default_targets
from xtuner.model.register import FAMILIES

SPECIAL = {
    "gemma 2": "attention scores within 2 (soft cap); logits within 3 (soft cap)",
    "mixtral": "mixture of 4 experts, 2 per token; a layer's are one fused weight",
    "qwen2 moe": "mixture of 4 experts, 2 per token",
    "deepseek v2": "latent attention (MLA)",
    "cohere": "logits times 0.25",
    "granite": "logits divided by 4",
    "starcoder": "the output head is the embedding (tied)",
    "glm 4": "rotary positions on 0.5 of each head",
}
HEADS = {
    "yi": "4, 1 for keys and values, of 8",
    "qwen3": "4, 2 for keys and values, of 16",
    "starcoder": "4, 1 for keys and values, of 8",
    "deepseek v2": "4",
    "glm 4": "4, 2 for keys and values, of 8",
}


@pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in STOCK])
def test_what_is_said_is_what_is_there(name: str, tmp_path: Path) -> None:
    if not is_known(name):
        pytest.skip("this version of transformers does not have it")
    found = describe_model(save_model(name, tmp_path))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    stored = sum(value.numel() for value in loaded.parameters())
    assert found["size"].startswith(f"{stored:,} parameters")
    assert found["on disk"].startswith("float32, 0.00 GB in 1 file (safetensors)")
    assert f"{VOCABULARY:,} tokens in the vocabulary" in found["shape"]
    assert found["shape"].startswith("2 layers, 32 wide")
    assert STOCK[name][0] in found["family"]
    assert found["code"] == "that of transformers"
    assert SPECIAL.get(name, "") in found.get("special", "")
    assert ("tied" in found.get("special", "")) == (
        loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    )
    if name in HEADS:
        assert found["heads"] == HEADS[name]
    said = set(found.get("LoRA", "on ").removeprefix("on ").split(", ")) - {""}
    if name != "mamba":  # PEFT refuses some of its layers
        assert said == set(default_targets(loaded))


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_have_their_row(kind: str) -> None:
    family = Ref(FAMILIES[kind]).resolve()
    with torch.device("meta"):
        model = family.causal_lm[0](family.config(num_hidden_layers=2, num_layers=2))
    assert set(KINDS[kind].targets) == set(default_targets(model))


def test_every_row_is_proven() -> None:
    assert set(KINDS) == set(FAMILIES) | {model_type for model_type, _ in STOCK.values()}


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 125696, "max_position_embeddings": 64},
        {"vocab_size": 125696, "model_max_length": 64},
        {"vocab_size": 64000, "max_position_embeddings": 64, "architectures": ["BaiChuanForCausalLM"]},
        {"vocab_size": 700, "max_position_embeddings": 64, "architectures": ["BaichuanForCausalLM"]},
        {"vocab_size": 700, "model_max_length": 64, "architectures": ["BaichuanForCausalLM"]},
        {"vocab_size": 700, "model_max_length": 64, "z_loss_weight": 0},
        {"vocab_size": 64000, "model_max_length": 64, "z_loss_weight": 0},
        {"vocab_size": 125696, "norm_head": False, "max_position_embeddings": 64},
    ],
)
def test_baichuan_is_told_apart_as_its_family_does(changes: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "baichuan", **changes}))
    config, said = AutoConfig.from_pretrained(tmp_path), describe_model(tmp_path).get("special", "")
    assert ("NormHead" in said, "ALiBi" in said) == (config.norm_head, config.alibi)


def test_files_of_all_sorts(tmp_path: Path) -> None:
    """Shards, .bin files, an index without its files, no weights, and files that are none of the checkpoint."""
    whole = make_tiny_internlm2(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16)
    count = sum(value.numel() for value in model.parameters())
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    (tmp_path / "shards" / "adapter_model.safetensors").write_bytes(b"none of it")
    sharded = describe_model(tmp_path / "shards")
    assert sharded["size"].startswith(f"{count:,} parameters")
    assert sharded["on disk"].startswith("bfloat16")
    for file in (tmp_path / "shards").glob("model-*"):
        file.unlink()
    assert describe_model(tmp_path / "shards")["size"] == "about 0.2 million parameters"
    binary = tmp_path / "binary"
    make_tiny_internlm2(binary)
    (binary / "model.safetensors").unlink()
    assert describe_model(binary)["size"] == "not known (no weights here)"
    torch.save({"a": torch.zeros(10**6)}, binary / "pytorch_model.bin")
    assert describe_model(binary)["size"] == "about 1.0 million parameters"
    assert describe_model(make_tiny_qwen2(tmp_path / "tied"))["special"] == "the output head is the embedding (tied)"
    assert describe_model(whole)["tokenizer"] == "InternLM2Tokenizer (built in here), from tokenizer.model"


def test_damage_is_said(tmp_path: Path) -> None:
    file = make_tiny_internlm2(tmp_path) / "model.safetensors"
    content = file.read_bytes()
    for broken in (b"", content[:100], content[:-1], b"\xff" * 100, b"\x02" + b"\0" * 7 + b"[]"):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=r"model\.safetensors is cut short or is no weight file"):
            read_header(file)
    for text, message in (("{", "not a JSON object"), ("[1]", "not a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            describe_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="is no model"):
        describe_model(tmp_path)
    for text in ("{}", '{"model_type": 3, "num_attention_heads": "x", "rope_scaling": [], "architectures": null}'):
        (tmp_path / "config.json").write_text(text)
        file.unlink(missing_ok=True)
        assert describe_model(tmp_path)["attention"].startswith("found out")


def test_program_code_is_named_with_its_classes() -> None:
    config = {"auto_map": {"AutoConfig": "configuration_x.XConfig", "AutoModel": "lab/y--modeling_x.XModel"}}
    tokens = {"auto_map": {"AutoTokenizer": ["tokens_x.Slow", None]}}
    assert foreign_code([config, tokens, {}, {"auto_map": "tokens_x.Fast"}]) == [
        "configuration_x.py (XConfig)",
        "lab/y--modeling_x.py (XModel)",
        "tokens_x.py (Fast, Slow)",
    ]
