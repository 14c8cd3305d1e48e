"""Checkpoints and adapters of 0.1.x through the command line: convert, merge, chat's way of loading, and training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from old_files import write_pth, write_zero
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

import xtuner
from xtuner.checkpoint.adapter import read_adapter
from xtuner.checkpoint.shards import ShardReader
from xtuner.cli.main import main
from xtuner.config.spec import ModelSpec
from xtuner.errors import UserError
from xtuner.model.load import load_model
from xtuner.model.trainable import trainable_state

BASE = Path(xtuner.__file__).parent / "assets" / "tiny"
LORA = {"r": 4, "alpha": 8}
IDS = torch.tensor([[1, 5, 9, 2, 30, 77, 300]])


def config(folder: Path, **model: Any) -> str:
    file = folder / "config.yaml"
    data = {"train": "x.json", "template": "internlm2_chat"}
    file.write_text(json.dumps({"model": {"path": str(BASE), **model}, "data": data}))
    return str(file)


def trained(**model: Any) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """The built-in model with other weights, and its training state by the names of 0.1.x."""
    spec = ModelSpec.model_validate({"path": str(BASE), **model})
    torch.manual_seed(0)  # an adapter begins at random
    made = load_model(spec, device="cpu", dtype=torch.float32, train=False)
    if "lora" not in model:
        made.requires_grad_(True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter += 0.005 * torch.randn(parameter.shape, generator=generator)
    return made, {name: tensor.clone() for name, tensor in trainable_state(made).items()}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def adapted() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    return trained(lora=LORA)


KINDS = ["pth", "pth of torch < 1.6", "zero 1", "zero 2", "zero 3"]


def write(folder: Path, kind: str, state: Mapping[str, Tensor]) -> Path:
    path = folder / "iter_3.pth"
    if kind.startswith("pth"):
        return write_pth(path, state, zipped=kind == "pth")
    names = list(state)
    groups = [{name: state[name] for name in names[::2]}, {name: state[name] for name in names[1::2]}]
    return write_zero(path, groups, world=3, stage=int(kind[-1]), prefix="bf16_")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter(adapted: tuple[torch.nn.Module, dict[str, Tensor]], tmp_path: Path, kind: str) -> None:
    """`xtuner convert pth_to_hf CONFIG iter_3.pth: ./hf`, and PEFT opens it as it was trained."""
    model, state = adapted
    path = write(tmp_path, kind, state)
    out = tmp_path / "hf"
    assert main(["convert", "pth_to_hf", config(tmp_path, lora=LORA), f"{path}:", str(out), "--fp32"]) == 0
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), out)
    assert torch.equal(logits(opened.eval()), logits(model.eval()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model(tmp_path: Path, kind: str) -> None:
    """With the frozen copy of DPO and the computed buffers that 0.1.x saved too."""
    _, state = trained()
    extra = {"ref_llm.model.norm.weight": torch.ones(256), "llm.layers.0.rotary_emb.inv_freq": torch.ones(4)}
    path = write(tmp_path, kind, {**extra, **state})
    assert main(["convert", "pth_to_hf", config(tmp_path), str(path), f"{tmp_path}/hf", "--fp32"]) == 0
    reader = ShardReader(tmp_path / "hf")
    assert {f"llm.{name}" for name in reader.names()} == set(state)
    assert all(torch.equal(reader.get(name), state[f"llm.{name}"]) for name in reader.names())


@pytest.mark.parametrize("kind", KINDS)
def test_training_begins_with_old_weights(
    adapted: tuple[torch.nn.Module, dict[str, Tensor]], tmp_path: Path, kind: str
) -> None:
    model, state = adapted
    path = write(tmp_path, kind, state)
    for setting in ("adapter", "weights"):
        spec = ModelSpec.model_validate({"path": str(BASE), "lora": LORA, setting: f"{path}:"})
        assert torch.equal(logits(load_model(spec, device="cpu", dtype=torch.float32, train=False)), logits(model))


def test_what_does_not_convert_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    projector = {"projector.model.0.weight": torch.ones(2, 2), "projector.model.2.bias": torch.ones(2)}
    path = write_pth(tmp_path / "iter_3.pth", projector)
    assert main(["convert", "pth_to_hf", config(tmp_path, lora=LORA), str(path), f"{tmp_path}/hf"]) == 1
    assert "vision" in capsys.readouterr().err
    path = write_zero(tmp_path / "iter_4.pth", [{"llm.a": torch.ones(3)}], world=2, stage=2)
    sorted(path.glob("*optim*"))[0].unlink()
    assert main(["convert", "pth_to_hf", config(tmp_path, lora=LORA), str(path), f"{tmp_path}/hf"]) == 1
    error = capsys.readouterr().err
    assert "lacks the optim_states file of 1 of 2 ranks" in error
    assert "Traceback" not in error
    assert not (tmp_path / "hf").exists()


OLD_CONFIG = {
    "auto_mapping": None,
    "base_model_name_or_path": "internlm/internlm2-chat-7b",
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "merge_weights": False,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "revision": None,
    "target_modules": ["w2", "wqkv", "w3", "output", "wo", "w1"],
    "task_type": "CAUSAL_LM",
}
"""As PEFT 0.4 wrote it, with the keys that it still knew."""


@pytest.fixture
def published(adapted: tuple[torch.nn.Module, dict[str, Tensor]], tmp_path: Path) -> Path:
    """An adapter as it lies on the hub: .bin in float16, and an old config."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(OLD_CONFIG))
    names = {name.removeprefix("llm.").replace(".default.", "."): tensor for name, tensor in adapted[1].items()}
    assert "base_model.model.model.layers.0.attention.wqkv.lora_A.weight" in names
    torch.save({name: tensor.half() for name, tensor in names.items()}, folder / "adapter_model.bin")
    return folder


def test_a_published_adapter_merges(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "merge", str(BASE), str(published), f"{tmp_path}/merged"]) == 0
    assert "Checked against base + adapter" in capsys.readouterr().out


def test_a_published_adapter_answers_and_trains_on(
    published: Path, adapted: tuple[torch.nn.Module, dict[str, Tensor]]
) -> None:
    expected = logits(adapted[0])
    for more in ({}, {"lora": LORA}):
        spec = ModelSpec.model_validate({"path": str(BASE), "adapter": str(published), **more})
        model = load_model(spec, device="cpu", dtype=torch.float32, train=False)
        assert (logits(model) - expected).std() < 0.05, "but for the rounding to float16"
    without = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    assert (logits(without) - expected).std() > 0.2
    config = {**read_adapter(published)[0], "new_kind_of_layer": 3}
    (published / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="uses new_kind_of_layer, which this version of PEFT does not know"):
        load_model(spec.model_copy(update={"lora": None}), device="cpu", dtype=torch.float32, train=False)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_base_in_bin_shards(published: Path, tmp_path: Path, shards: int) -> None:
    """Shards as torch 1 and 2 wrote them, by the names of the hub, the second without zip."""
    reader, base = ShardReader(BASE), tmp_path / "base"
    base.mkdir()
    for file in BASE.iterdir():
        if file.suffix != ".safetensors":
            (base / file.name).write_bytes(file.read_bytes())
    names, index = reader.names(), {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {name: reader.get(name) for name in names[number::shards]}
        torch.save(part, base / file, _use_new_zipfile_serialization=number == 0)
        index |= dict.fromkeys(part, file)
    (base / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert main(["convert", "merge", str(base), str(published), f"{tmp_path}/merged"]) == 0
    assert main(["convert", "merge", str(BASE), str(published), f"{tmp_path}/same"]) == 0
    one, other = ShardReader(tmp_path / "merged"), ShardReader(tmp_path / "same")
    assert all(torch.equal(one.get(name), other.get(name)) for name in names)
