"""The check of a merge: however strong the adapter, rounding is no mistake and a mistake is no rounding."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_tiny_llama
from transformers import AutoModelForCausalLM

from xtuner.checkpoint.adapter import read_adapter
from xtuner.checkpoint.shards import ShardReader
from xtuner.errors import UserError
from xtuner.export.fold import Fold
from xtuner.export.merge import merge
from xtuner.export.verify import compare, find_wrong_weight
from xtuner.model.load import load_tokenizer

ONE = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_llama(tmp_path_factory.mktemp("base"), layers=8, initializer_range=0.3)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def adapter_of(base: Path, folder: Path, scale: float) -> Path:
    """An adapter of all square layers; `scale` is the size of the numbers in both matrices."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"target_modules": ["q_proj", "o_proj"], "r": 8, "lora_alpha": 16}
    model = get_peft_model(model, LoraConfig(**options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


class NotMerged(Fold):
    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight if name == ONE else super().apply(name, weight)


class Scaled(Fold):
    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        change = super().apply(name, weight.float()) - weight.float()
        return (weight.float() + (1.05 if name == ONE else 1) * change).to(weight.dtype)


class Transposed(Fold):
    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        change = super().apply(name, weight.float()) - weight.float()
        return (weight.float() + (change.T if name == ONE else change)).to(weight.dtype)


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0, 4.0])
def test_rounding_is_no_mistake(base: Path, tmp_path: Path, scale: float) -> None:
    adapter = adapter_of(base, tmp_path / "adapter", scale)
    told: list[str] = []
    merge(base, adapter, tmp_path / "merged", tell=told.append)
    assert told[-1].startswith("Checked against base + adapter"), told


def test_a_strong_adapter_blows_rounding_up(base: Path, tmp_path: Path) -> None:
    """So the estimate from the format alone would refuse what is right weight by weight."""
    adapter = adapter_of(base, tmp_path / "adapter", 1.0)
    merge(base, adapter, tmp_path / "merged", tell=lambda text: None)
    fold = Fold(*read_adapter(adapter))
    found = compare(base, fold, tmp_path / "merged", load_tokenizer(str(base)), None)
    estimate = 8 * torch.finfo(torch.bfloat16).eps / 4 * (2 * 8 + 1) ** 0.5 * found.spread
    assert found.typical > estimate
    assert found.agrees
    assert find_wrong_weight(ShardReader(base), fold, ShardReader(tmp_path / "merged")) is None


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("wrong", [NotMerged, Scaled, Transposed])
def test_a_mistake_in_one_weight_is_named(
    base: Path, tmp_path: Path, wrong: Callable[..., Fold], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_of(base, tmp_path / "adapter", scale)
    monkeypatch.setattr("xtuner.export.merge.Fold", wrong)
    with pytest.raises(UserError, match=f"does not say what base and adapter say: {ONE} is not the base with"):
        merge(base, adapter, tmp_path / "merged", tell=lambda text: None)
    assert not (tmp_path / "merged").exists()
