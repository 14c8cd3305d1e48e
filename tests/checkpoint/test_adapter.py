"""Adapters written here open in PEFT, and PEFT's open here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from xtuner.checkpoint.adapter import (
    file_name,
    module_name,
    read_adapter,
    render_card,
    write_adapter,
)
from xtuner.checkpoint.model_folder import is_adapter, read_adapter_config
from xtuner.errors import UserError

IDS = torch.tensor([[1, 5, 9, 2, 30]])

CASES: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "down_proj"]},
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 3},
        "use_rslora": True,
    },
}


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_bias=True,
        )
    ).eval()


def adapted(**options: Any) -> PeftModel:
    model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def trained_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """The names of a training state: PEFT's, with the adapter's name in them, behind `llm.`."""
    return {f"llm.{name}": value for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_ours_opens_in_peft(tmp_path: Path, case: str, safe: bool) -> None:
    model = adapted(**CASES[case])
    tensors = {file_name(name): value for name, value in trained_state(model).items()}
    assert None not in tensors
    write_adapter(tmp_path, model.peft_config["default"].to_dict(), tensors, safe=safe)
    opened = PeftModel.from_pretrained(base(), str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(opened(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_peft_opens_here(tmp_path: Path, case: str, safe: bool) -> None:
    model = adapted(**CASES[case])
    model.save_pretrained(tmp_path, safe_serialization=safe)
    config, tensors = read_adapter(tmp_path)
    assert config["r"] == 4
    for name, value in trained_state(model).items():
        assert torch.equal(tensors[file_name(name)], value), name  # type: ignore[index]


def test_names() -> None:
    """The key forms of compat/checkpoints.md sections 2 and 4."""
    layer = "base_model.model.model.layers.0.attention.wqkv"
    assert file_name(f"llm.{layer}.lora_A.default.weight") == f"{layer}.lora_A.weight"
    assert file_name(f"{layer}.lora_B.default.weight") == f"{layer}.lora_B.weight"
    assert file_name("llm.model.norm.weight") is None
    assert file_name("projector.model.0.weight") is None
    assert file_name("llm.base_model.model.output.modules_to_save.default.weight") == "base_model.model.output.weight"
    assert module_name(f"{layer}.lora_A.weight") == "model.layers.0.attention.wqkv"
    assert module_name("base_model.model.model.embed.lora_embedding_A") == "model.embed"
    assert module_name("base_model.model.output.weight") == "output"


def test_what_is_no_adapter(tmp_path: Path) -> None:
    assert not is_adapter(tmp_path)
    with pytest.raises(UserError, match="no adapter in"):
        read_adapter(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text("{")
    with pytest.raises(UserError, match="not a JSON object"):
        read_adapter_config(tmp_path)
    config.write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(UserError, match="kind IA3"):
        read_adapter_config(tmp_path)
    config.write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    with pytest.raises(UserError, match="no weights"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match=r"adapter_model\.bin is cut short"):
        read_adapter(tmp_path)


def test_the_other_format_does_not_stay_behind(tmp_path: Path) -> None:
    """PEFT prefers safetensors: an older one next to a new .bin would win."""
    tensors = {"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}
    write_adapter(tmp_path, {"r": 2, "lora_alpha": 4, "target_modules": {"x"}}, tensors)
    write_adapter(
        tmp_path,
        {"r": 2, "lora_alpha": 4, "target_modules": {"x"}},
        tensors,
        safe=False,
        chat_template="{{ messages }}",
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.bin", "chat_template.jinja"]
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "inference_mode": True,
        "lora_alpha": 4,
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["x"],
        "task_type": "CAUSAL_LM",
    }


def test_the_card_states_facts_only() -> None:
    config = {"base_model_name_or_path": "org/model", "r": 8, "lora_alpha": 16, "target_modules": ["a", "b"]}
    card = render_card(config)
    assert "base_model: org/model" in card
    assert "rank 8, alpha 16, on the layers: a, b" in card
    assert "not stated yet" in card
    assert "base_model:" not in render_card({**config, "base_model_name_or_path": "/models/mine"})
