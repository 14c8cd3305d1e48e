"""Training states become PEFT folders and whole models, without building anything."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import GOLDEN, copy_tokenizer, make_tiny_internlm2, make_tiny_qwen2
from trained_state import trained
from transformers import AutoModelForCausalLM

from xtuner.checkpoint.adapter import read_adapter
from xtuner.checkpoint.run_record import RunRecord, write_run
from xtuner.checkpoint.shards import ShardReader
from xtuner.checkpoint.state import save_state
from xtuner.config.spec import RunSpec
from xtuner.errors import UserError
from xtuner.export.merge import merge, merge_run
from xtuner.export.split import split
from xtuner.export.to_hf import pth_to_hf
from xtuner.generate.load import load_chat
from xtuner.model.trainable import trainable_state

IDS = torch.tensor([[1, 5, 9, 2, 30, 77, 300]])
LORA = {"r": 4, "alpha": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_internlm2(tmp_path_factory.mktemp("base"))


def spec_of(base: Path, **model: Any) -> RunSpec:
    return RunSpec.model_validate(
        {"model": {"path": str(base), **model}, "data": {"train": "x.json", "template": "internlm2_chat"}}
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    "lora",
    [LORA, {**LORA, "targets": ["wqkv"], "dora": True}, {**LORA, "targets": ["wo"], "modules_to_save": ["output"]}],
    ids=["default targets", "dora", "saved module"],
)
def test_an_adapter(base: Path, tmp_path: Path, lora: dict[str, Any], safe: bool) -> None:
    spec = spec_of(base, lora=lora)
    model = trained(spec, tmp_path / "iter_4.pth")
    (tmp_path / "hf").mkdir()  # the course makes it first
    pth_to_hf(
        spec, tmp_path / "iter_4.pth", tmp_path / "hf", dtype="float32", safe=safe, copy=("xtuner_config.py", "a = 1\n")
    )
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    weights = "adapter_model.safetensors" if safe else "adapter_model.bin"
    assert names == {"README.md", "adapter_config.json", weights, "xtuner_config.py", "chat_template.jinja"}
    assert (tmp_path / "hf" / "xtuner_config.py").read_text() == "a = 1\n"
    config, tensors = read_adapter(tmp_path / "hf")
    assert config["base_model_name_or_path"] == str(base)
    assert config["inference_mode"] is True
    if "targets" not in lora:
        assert config["target_modules"] == ["output", "w1", "w2", "w3", "wo", "wqkv"], "taken from the weights"
        key = "base_model.model.model.layers.0.attention.wqkv.lora_A.weight"
        assert torch.equal(tensors[key], trainable_state(model)["llm." + key.replace("lora_A.", "lora_A.default.")])
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "hf")
    assert torch.equal(logits(opened.eval()), logits(model.eval()))


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float16), ("bfloat16", torch.bfloat16)])
def test_dtypes(base: Path, tmp_path: Path, dtype: str | None, expected: torch.dtype) -> None:
    spec = spec_of(base, lora=LORA)
    trained(spec, tmp_path / "iter_4.pth")
    pth_to_hf(spec, tmp_path / "iter_4.pth", tmp_path / "hf", **({"dtype": dtype} if dtype else {}))
    assert {tensor.dtype for tensor in read_adapter(tmp_path / "hf")[1].values()} == {expected}


def test_the_base_is_not_needed_for_an_adapter(base: Path, tmp_path: Path) -> None:
    spec = spec_of(base, lora=LORA)
    trained(spec, tmp_path / "iter_4.pth")
    spec.model.path = "Some_Lab/some-model"
    pth_to_hf(spec, tmp_path / "iter_4.pth", tmp_path / "hf")
    assert read_adapter(tmp_path / "hf")[0]["base_model_name_or_path"] == "Some_Lab/some-model"


def test_a_quantised_run_needs_no_quantisation_to_convert(base: Path, tmp_path: Path) -> None:
    spec = spec_of(base, lora=LORA, quant={"bits": 4})
    trained(spec, tmp_path / "iter_4.pth")
    pth_to_hf(spec, tmp_path / "iter_4.pth", tmp_path / "hf")
    told: list[str] = []
    merge(base, tmp_path / "hf", tmp_path / "merged", tell=told.append)
    assert any(line.startswith("Checked") for line in told)


@pytest.mark.parametrize("safe", [True, False])
def test_a_whole_model(base: Path, tmp_path: Path, safe: bool) -> None:
    spec = spec_of(base)
    model = trained(spec, tmp_path / "iter_4.pth")
    options: dict[str, Any] = {"dtype": "float32", "safe": safe, "max_shard_size": "200KB"}
    pth_to_hf(spec, tmp_path / "iter_4.pth", tmp_path / "hf", **options)
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json"} <= names
    assert f"{'model' if safe else 'pytorch_model'}-00002-of-00004.{'safetensors' if safe else 'bin'}" in names
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert opened.dtype == torch.float32
    assert torch.equal(logits(opened), logits(model.eval()))
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"] == [2, 750]
    assert load_chat(tmp_path / "hf", tell=print).template.name == "internlm2_chat"  # type: ignore[union-attr]


def test_a_whole_model_with_a_tied_head(tmp_path: Path) -> None:
    base = make_tiny_qwen2(tmp_path / "base")
    copy_tokenizer(GOLDEN / "llama_tokenizer", base)
    spec = spec_of(base)
    model = trained(spec, tmp_path / "iter_4.pth")
    pth_to_hf(spec, tmp_path / "iter_4.pth", tmp_path / "hf")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert opened.dtype == torch.float16
    assert "lm_head.weight" not in ShardReader(tmp_path / "hf")
    torch.testing.assert_close(logits(opened.float()), logits(model.eval()), atol=2e-2, rtol=1e-2)


def test_what_does_not_belong_together(base: Path, tmp_path: Path) -> None:
    pth, out = tmp_path / "iter_4.pth", tmp_path / "hf"
    trained(spec_of(base, lora=LORA), pth)
    with pytest.raises(UserError, match="adapter has rank 4, and the config says 8"):
        pth_to_hf(spec_of(base, lora={**LORA, "r": 8}), pth, out)
    with pytest.raises(UserError, match=r"holds 22 weights that are not there, such as base_model\."):
        pth_to_hf(spec_of(base), pth, out)
    other = make_tiny_qwen2(tmp_path / "qwen2")
    with pytest.raises(UserError, match=r"does not fit .*qwen2: it adapts .* such as model\.layers\.0\.attention\.wo"):
        pth_to_hf(spec_of(other, lora=LORA), pth, out)
    with pytest.raises(UserError, match="quantised weights are not trained"):
        pth_to_hf(spec_of(base, quant={"bits": 4}), pth, out)
    full = tmp_path / "full.pth"
    trained(spec_of(base), full)
    with pytest.raises(UserError, match="none of it"):
        pth_to_hf(spec_of(base, lora=LORA), full, out)
    wide = make_tiny_internlm2(tmp_path / "wide", hidden=128)
    with pytest.raises(UserError, match=r"does not fit .*wide"):
        pth_to_hf(spec_of(wide), full, out)
    save_state(tmp_path / "llava.pth", {"state_dict": {"projector.model.0.weight": torch.zeros(1)}})
    with pytest.raises(UserError, match="cannot be converted yet"):
        pth_to_hf(spec_of(base), tmp_path / "llava.pth", out)
    with pytest.raises(UserError, match="There is no dtype"):
        pth_to_hf(spec_of(base), full, out, dtype="fp4")
    assert not out.exists()


def test_damaged_checkpoints(base: Path, tmp_path: Path) -> None:
    spec, pth = spec_of(base, lora=LORA), tmp_path / "iter_4.pth"
    with pytest.raises(UserError, match="no checkpoint"):
        pth_to_hf(spec, pth, tmp_path / "hf")
    trained(spec, pth)
    pth.write_bytes(pth.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"cut short|cannot be read"):
        pth_to_hf(spec, pth, tmp_path / "hf")
    save_state(pth, {"state_dict": {}})
    with pytest.raises(UserError, match="holds no weights"):
        pth_to_hf(spec, pth, tmp_path / "hf")
    key = "llm.base_model.model.model.layers.0.attention.wqkv.lora_{}.default.weight"
    for value, message in ((float("nan"), "the training diverged"), (1e6, "float16 cannot hold")):
        rows = {key.format("A"): torch.full((4, 64), value), key.format("B"): torch.zeros(128, 4)}
        save_state(pth, {"state_dict": rows})
        with pytest.raises(UserError, match=message):
            pth_to_hf(spec, pth, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def record_of(spec: RunSpec, base: Path, **more: Any) -> RunRecord:
    return RunRecord(
        spec=spec.model_dump(mode="json"),
        template="internlm2_chat",
        base={"path": str(base)},
        status="finished",
        **more,
    )


def test_merging_a_run(base: Path, tmp_path: Path) -> None:
    """With an exported adapter, from its last checkpoint alone, and fully trained: the same command."""
    spec = spec_of(Path("moved/away"), lora=LORA, quant={"bits": 4})
    spec.model.path = str(base)
    run = tmp_path / "run"
    run.mkdir()
    trained(spec, run / "iter_4.pth")
    write_run(run, record_of(spec, base))
    told: list[str] = []
    merge_run(run, tmp_path / "a", tell=told.append)
    assert any("trained over 4-bit weights" in line for line in told)
    pth_to_hf(spec, run / "iter_4.pth", run / "adapter", dtype="float32")
    write_run(run, record_of(spec, base, adapter="adapter"))
    (run / "iter_4.pth").unlink()
    merge_run(run, tmp_path / "b", tell=told.append)
    first, second = ShardReader(tmp_path / "a"), ShardReader(tmp_path / "b")
    assert all(torch.equal(first.get(name), second.get(name)) for name in first.names())
    assert not any(line.startswith("Careful") for line in told)
    changed = record_of(spec, base, adapter="adapter")
    changed.base["config_hash"] = "another"
    write_run(run, changed)
    merge_run(run, tmp_path / "b", tell=told.append)
    assert any(line.startswith("Careful: config.json") for line in told)
    changed.base = {"path": "/not/there"}
    write_run(run, changed)
    with pytest.raises(UserError, match="not in /not/there any more"):
        merge_run(run, tmp_path / "c")
    write_run(run, record_of(spec, base))
    shutil.rmtree(run / "adapter")
    with pytest.raises(UserError, match="ended before it saved anything"):
        merge_run(run, tmp_path / "c")


def test_merging_a_fully_trained_run(base: Path, tmp_path: Path) -> None:
    spec, run = spec_of(base), tmp_path / "run"
    run.mkdir()
    model = trained(spec, run / "iter_4.pth")
    write_run(run, record_of(spec, base))
    merge_run(run, tmp_path / "merged", tell=lambda text: None)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(model.eval()))


def test_split(base: Path, tmp_path: Path) -> None:
    split(base, tmp_path / "out", tell=lambda text: None)
    reader, original = ShardReader(tmp_path / "out"), ShardReader(base)
    assert len(reader.files) == len(original.names()) == 17
    assert all(torch.equal(reader.get(name), original.get(name)) for name in original.names())
    assert (tmp_path / "out" / "tokenizer.model").is_file()
    assert torch.equal(*(logits(AutoModelForCausalLM.from_pretrained(path)) for path in (base, tmp_path / "out")))
    with pytest.raises(UserError, match="read from"):
        split(base, base)
    with pytest.raises(UserError, match="no folder"):
        split(tmp_path / "nowhere", tmp_path / "other")


def test_an_adapter_is_not_put_into_the_folder_of_a_model(base: Path, tmp_path: Path) -> None:
    """From then on every loader would put it on top of that model."""
    spec = spec_of(base, lora=LORA)
    trained(spec, tmp_path / "iter_4.pth")
    before = sorted(path.name for path in base.iterdir())
    with pytest.raises(UserError, match="holds a model, and loaders would put this adapter on top"):
        pth_to_hf(spec, tmp_path / "iter_4.pth", base)
    assert sorted(path.name for path in base.iterdir()) == before
