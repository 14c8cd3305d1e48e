"""Merges of the architectures of transformers itself: exact, and checked by themselves, fused experts included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from stock import is_known, save_model
from transformers import AutoModelForCausalLM

from xtuner.checkpoint.adapter import write_adapter
from xtuner.checkpoint.shards import ShardReader
from xtuner.errors import UserError
from xtuner.export.companion import write_companions
from xtuner.export.merge import merge
from xtuner.model.lora import default_targets

NAMES = [
    "mixtral",
    "qwen2 moe",
    "qwen3 moe",
    "gpt-oss",
    "deepseek v2",
    "gemma 2",
    "gemma 3",
    "cohere",
    "starcoder",
    "phi 3",
    "glm 4",
    "internlm 3",
    "minicpm 3",
    "granite",
]
IDS = torch.tensor([[1, 5, 9, 2, 30, 77, 300]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("name", NAMES)
def test_merged_says_what_base_and_adapter_say(name: str, tmp_path: Path) -> None:
    if not is_known(name):
        pytest.skip("this version of transformers does not have it")
    base = save_model(name, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = logits(model)
    targets = default_targets(model)
    if (
        name == "qwen2 moe"
    ):  # those of the dense layer and the shared expert, which the experts of the files are named as
        targets += ["gate_proj", "up_proj", "down_proj"]
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = logits(wrapped)
    told: list[str] = []
    merge(base, tmp_path / "adapter", tmp_path / "merged", tell=told.append)
    assert told[-1].startswith("Checked against base + adapter: logits differ by at most"), told
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-5)
    assert (expected - plain).abs().max() > 0.05, "the adapter does something"
    assert set(ShardReader(tmp_path / "merged").names()) == set(ShardReader(base).names())


def test_an_adapter_of_single_experts_is_merged(tmp_path: Path) -> None:
    """Made with transformers 4, where every expert had linear layers of its own, under the names of the files."""
    base = save_model("mixtral", tmp_path / "base")
    reader, generator = ShardReader(base), torch.Generator().manual_seed(1)
    tensors, expected = {}, {}
    for name in (name for name in reader.names() if ".experts." in name and ".w2." in name):
        weight, module = reader.get(name), name.removesuffix(".weight")
        down = torch.randn(2, weight.shape[1], generator=generator)
        up = torch.randn(weight.shape[0], 2, generator=generator)
        tensors |= {f"base_model.model.{module}.lora_A.weight": down, f"base_model.model.{module}.lora_B.weight": up}
        expected[name] = weight + 2 * up @ down
    write_adapter(tmp_path / "adapter", {"r": 2, "lora_alpha": 4, "target_modules": ["w2"]}, tensors)
    told: list[str] = []
    merge(base, tmp_path / "adapter", tmp_path / "merged", tell=told.append)
    assert told[-1].startswith("Checked against base + adapter"), told
    merged = ShardReader(tmp_path / "merged")
    assert len(expected) == 8
    for name, weight in expected.items():
        torch.testing.assert_close(merged.get(name), weight)


def test_damage_inside_the_experts_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check reads what lies in the files of the merged model, fused as the library does it."""
    base = save_model("mixtral", tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")

    def spoiled(base: Path, folder: Path, *args: Any, **options: Any) -> None:
        write_companions(base, folder, *args, **options)
        reader = ShardReader(folder)
        tensors = {name: reader.get(name) * (3 if ".experts.1.w1" in name else 1) for name in reader.names()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr("xtuner.export.merge.write_companions", spoiled)
    with pytest.raises(UserError, match="does not say what base and adapter say"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    base = save_model("granite", tmp_path / "base")
    reader = ShardReader(base)
    tensors = {name.replace("model.norm.", "model.last_norm."): reader.get(name) for name in reader.names()}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    told: list[str] = []
    merge(base, tmp_path / "adapter", tmp_path / "merged", tell=told.append)
    assert told[-1].startswith("Not checked: ")
    assert "model.norm.weight" in told[-1]
