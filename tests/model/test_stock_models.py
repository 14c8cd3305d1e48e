"""The architectures of transformers itself: packing is exact or refused, the loss is the library's, LoRA trains."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stock import SIZES, STOCK, VOCABULARY, is_known, make_model, save_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from xtuner.config.spec import LoraSpec, ModelSpec, RunSpec
from xtuner.dataset.batch import IGNORE, Batch
from xtuner.engine.train import train
from xtuner.errors import UserError
from xtuner.model.attention import PACKED, attention_of, check_attention, check_packing, packing_arguments
from xtuner.model.checks import check_rotary
from xtuner.model.load import load_model
from xtuner.model.lora import add_lora, fused_experts
from xtuner.objective.sft import SFT
from xtuner.ops.packing import Packing

LENGTHS = [5, 1, 7, 12]
EXACT = [
    "llama 3",
    "yi",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2 moe",
    "qwen3",
    "qwen3 moe",
    "gemma",
    "gemma 2",
    "gemma 3",
    "phi 3",
    "deepseek v2",
    "cohere",
    "starcoder",
    "starcoder 2",
    "glm 4",
    "glm 4 0414",
    "internlm 3",
    "minicpm 3",
    "granite",
    "gpt-oss",
    "stablelm",
]
"""Packed rows are exact with the attention that is chosen for them."""
ALONE = ["falcon", "bloom", "mamba"]
"""Samples in one row would see each other: one sample a row."""
LIBRARY = {"stablelm": "sdpa", "falcon": "sdpa", "bloom": "eager", "mamba": "eager"}
"""They do not call attention through transformers' interface, so they keep its own; the others take ours."""

ROWS = [{"instruction": f"Say {n}.", "output": f"{n} " * (n % 5 + 1)} for n in range(12)]


def known(names: list[str]) -> list[object]:
    """The names as parameters, without those that the installed transformers lacks."""
    return [
        pytest.param(name, marks=[] if is_known(name) else pytest.mark.skip("not in this version")) for name in names
    ]


def chosen(name: str, wanted: str = "auto") -> str | None:
    """What `load_model` asks for in training."""
    return attention_of(type(make_model(name)), wanted, train=True)


def make_batch() -> Batch:
    """Four segments in one row; the first token of each is not learned."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (1, sum(LENGTHS)), generator=generator)
    labels = torch.cat([torch.cat([part[1:], torch.tensor([IGNORE])]) for part in ids[0].split(LENGTHS)])[None]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return Batch(ids, labels, positions, Packing.from_lengths(LENGTHS))


@torch.no_grad()
def alone(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Logits of every segment by itself, (1, T, V)."""
    return torch.cat([model(part, use_cache=False).logits for part in batch.input_ids.split(LENGTHS, dim=1)], dim=1)


def test_the_table_is_whole() -> None:
    assert sorted(EXACT + ALONE) == sorted(STOCK)


@pytest.mark.parametrize("name", known(EXACT))
def test_packed_segments_are_as_if_alone(name: str) -> None:
    """Against the library's own formula on each segment: windows, soft caps, sinks, partial rotary, latent heads."""
    batch, attention = make_batch(), chosen(name)
    assert attention == (None if name in LIBRARY else PACKED)
    expected = alone(make_model(name, "eager"), batch)
    model = make_model(name, attention)
    assert model.config._attn_implementation == LIBRARY.get(name, PACKED)
    with torch.no_grad():
        arguments = {"position_ids": batch.positions, "use_cache": False, **packing_arguments(batch.packing, model)}
        found = model(batch.input_ids, **arguments).logits
        leaking = model(batch.input_ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (leaking - expected).abs().max() > 1e-3, "the segments are distinguishable"
    check_attention(model)
    check_packing(model)


@pytest.mark.parametrize("name", known([*EXACT, *ALONE]))
def test_the_loss_is_the_librarys(name: str) -> None:
    """Summed over what is learned, from the logits that the library gives each segment: scaled and capped heads too.

    A mixture of experts has its balance loss there only with `output_router_logits`, which is off in published
    checkpoints and by default.
    """
    batch = make_batch()
    logits = alone(make_model(name, "eager"), batch)[0]
    expected = functional.cross_entropy(logits, batch.labels[0], ignore_index=IGNORE, reduction="sum")
    model = make_model(name, chosen(name))
    if name in EXACT:
        found = SFT()(model, batch).total
    else:
        rows = zip(batch.input_ids.split(LENGTHS, 1), batch.labels.split(LENGTHS, 1), strict=True)
        parts = [
            Batch(ids, labels, torch.arange(ids.shape[1])[None], Packing.from_lengths([ids.shape[1]]))
            for ids, labels in rows
        ]
        found = sum(SFT()(model, part).total for part in parts)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and all prepared data inside it."""
    folder = tmp_path_factory.mktemp("stock")
    (folder / "data.json").write_text(json.dumps(ROWS))
    return folder


def make_spec(model: Path, folder: Path, **data: object) -> RunSpec:
    return RunSpec.model_validate(
        {
            "model": {"path": str(model), "lora": {"r": 4}},
            "data": {
                "train": str(folder / "data.json"),
                "template": "internlm2_chat",
                "max_length": 64,
                "cache": str(folder / "cache"),
                **data,
            },
            "loop": {"max_iters": 2, "log_every": 1},
            "checkpoint": {"every": None, "last": False},
            "optim": {"lr": 1e-3},
            "work_dir": str(model.parent / "run"),
        }
    )


@pytest.mark.parametrize("name", known([*EXACT, *ALONE]))
def test_lora_trains(name: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two iterations; every part of the adapter got a gradient."""
    model = save_model(name, tmp_path / "model")
    spec = make_spec(model, folder, pack=name in EXACT)
    if name == "mamba":  # PEFT refuses its out_proj
        spec.model.lora.targets = ["in_proj", "x_proj"]
    with caplog.at_level("INFO", "xtuner"):
        train(spec)
    parts = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    still = [key for key, value in parts.items() if ".lora_B." in key and not value.abs().max() > 0]
    assert parts
    assert not still
    assert ("leaves the experts as they are" in caplog.text) == bool(fused_experts(make_model(name)))


@pytest.mark.parametrize("name", known(ALONE))
def test_what_cannot_be_packed_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    model = save_model(name, tmp_path / "model")
    with pytest.raises(UserError, match=r"one row|packed rows.*data\.pack=false loop\.batch_size=1"):
        train(make_spec(model, folder))
    spec = make_spec(model, folder, pack=False)
    spec.loop.batch_size = 2  # several samples in a row again
    with pytest.raises(UserError, match=r"data\.pack=false loop\.batch_size=1"):
        train(spec)


def test_adapters_go_where_they_can_be_merged() -> None:
    """PEFT would read the usual names as those of the fused experts in some architectures."""
    with pytest.raises(UserError, match=r"PEFT takes gate_proj, up_proj for the experts.*q_proj"):
        add_lora(make_model("deepseek v2"), LoraSpec(targets=["q_proj", "gate_proj", "up_proj"]))
    gpt2 = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(UserError, match=r"no linear layers of the usual kind.*model\.lora\.targets"):
        add_lora(gpt2, LoraSpec())
    add_lora(gpt2, LoraSpec(targets=["c_attn"]))


@pytest.mark.parametrize(("name", "attention"), [("gemma 2", "eager"), ("mistral", "sdpa"), ("llama 3", "eager")])
def test_the_librarys_attention_can_be_had(name: str, attention: str, tmp_path: Path) -> None:
    spec = ModelSpec(path=str(save_model(name, tmp_path)), attention=attention)
    model = load_model(spec, device="cpu", dtype=torch.float32, train=True)
    assert model.config._attn_implementation == attention


def test_attention_that_leaves_something_out_is_refused(tmp_path: Path) -> None:
    """SDPA knows no soft cap: transformers 5.23 refuses it itself, 5.17 would compute something else."""
    spec = ModelSpec(path=str(save_model("gemma 2", tmp_path)), attention="sdpa")
    with pytest.raises(UserError, match=r"attention.*model\.attention=eager"):
        load_model(spec, device="cpu", dtype=torch.float32, train=True, packed=False)


def test_samples_beyond_a_window_of_the_mask_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phi-3.5-MoE tells its mask alone how far it looks back; what the sentence advises runs.

    Its routers are linear layers by class alone, and carry no adapter.
    """
    sizes = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}
    monkeypatch.setitem(STOCK, "phi 3.5 moe", ("phimoe", sizes))  # type: ignore[arg-type]
    model = save_model("phi 3.5 moe", tmp_path / "model")
    with pytest.raises(UserError, match=r"32 tokens at most.*data\.max_length=32, or model\.attention=sdpa"):
        train(make_spec(model, folder))
    train(make_spec(model, folder, max_length=32))
    spec = make_spec(model, folder)
    spec.model.attention = "sdpa"
    train(spec)


def test_positions_that_depend_on_neighbours_are_refused() -> None:
    short = {"max_position_embeddings": 64}
    dynamic = AutoConfig.for_model("llama", **short, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32}
    longrope = AutoConfig.for_model(
        "phi3",
        **short,
        hidden_size=64,
        num_attention_heads=8,
        original_max_position_embeddings=32,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors},
    )
    for packed in (True, False):
        check_rotary(dynamic, 64, packed=packed)
        with pytest.raises(UserError, match=r"dynamic.*data\.max_length=64"):
            check_rotary(dynamic, 65, packed=packed)
    check_rotary(longrope, 32, packed=True)
    check_rotary(longrope, 64, packed=False)
    with pytest.raises(UserError, match=r"more than 32 tokens.*data\.max_length=32, or .*data\.pack=false"):
        check_rotary(longrope, 64, packed=True)
    check_rotary(AutoConfig.for_model("gemma3_text"), 10**9, packed=True)
