"""A run may add tokens to a model and stretch its positions: both survive saving, converting, merging and talking."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import GOLDEN, copy_tokenizer, make_tiny_internlm2, make_tiny_qwen2
from trained_state import trained
from transformers import AutoTokenizer

from xtuner.config.spec import ModelSpec, RunSpec
from xtuner.errors import UserError
from xtuner.export.merge import merge
from xtuner.export.to_hf import pth_to_hf
from xtuner.generate.load import load_chat
from xtuner.model.load import load_base, load_model, load_tokenizer
from xtuner.model.position import stretch_positions
from xtuner.model.vocabulary import grow_vocabulary

ADDED = ["<question>", "<answer>"]
IDS = torch.tensor([[1, 5, 752, 2, 753, 77, 300]])
LORA = {"r": 4, "alpha": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_internlm2(tmp_path_factory.mktemp("base"))


def spec_of(base: Path, **model: Any) -> RunSpec:
    grown = {"path": str(base), "resize_vocab": True, "tokenizer_options": {"additional_special_tokens": ADDED}}
    return RunSpec.model_validate(
        {"model": {**grown, **model}, "data": {"train": "x.json", "template": "internlm2_chat"}}
    )


def logits(model: Any, ids: torch.Tensor = IDS, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, **arguments).logits
    return found


@pytest.mark.parametrize(
    "name",
    [
        *("internlm2", "internlm_7b", "baichuan_13b", "baichuan2_13b"),
        *("chatglm3", "qwen", "minicpm_2b", "deepseek_moe"),
    ],
)
def test_every_family_grows_and_says_about_old_tokens_what_it_said(name: str) -> None:
    spec = ModelSpec(path=str(GOLDEN / name))
    model = load_base(spec, device="cpu", dtype=torch.float32, train=False)
    known = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[5, 6, 7, 8]])
    before = logits(model, ids)
    assert not grow_vocabulary(model, known)
    assert grow_vocabulary(model, known + 1)
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] % 64 == 0
    assert rows.shape[0] == model.get_output_embeddings().weight.shape[0] > known
    torch.testing.assert_close(logits(model, ids)[..., :known], before)
    for weight in (rows, model.get_output_embeddings().weight):
        torch.testing.assert_close(weight[known:], weight[:known].mean(0).expand_as(weight[known:]))


def make_tied(folder: Path, **config: object) -> Path:
    """Save a model whose head is its embedding."""
    make_tiny_qwen2(folder, tie_word_embeddings=True, **{"vocab_size": 752, **config})
    copy_tokenizer(GOLDEN / "internlm2", folder)
    return folder


@pytest.mark.parametrize("make", [make_tiny_internlm2, make_tied])
def test_an_adapter_brings_its_tokens_to_chat_and_merge(make: Any, tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    spec = spec_of(base, lora=LORA, quant=None)
    first_new = len(load_tokenizer(str(base)))
    model = trained(spec, tmp_path / "iter_4.pth")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[5, first_new, 7, first_new + 1, 9]])
    expected = logits(model, ids)

    pth_to_hf(spec, tmp_path / "iter_4.pth", tmp_path / "hf", dtype="float32")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "hf")) == first_new + 2
    chat = load_chat(base, adapter=tmp_path / "hf", template="internlm2_chat", device="cpu")
    assert chat.tokenizer.convert_tokens_to_ids(ADDED) == [first_new, first_new + 1]
    torch.testing.assert_close(logits(chat.model, ids), expected)

    merge(base, tmp_path / "hf", tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["vocab_size"] == vocabulary
    merged = load_model(ModelSpec(path=str(tmp_path / "merged")), device="cpu", dtype=torch.float32, train=False)
    torch.testing.assert_close(logits(merged, ids), expected, atol=1e-4, rtol=1e-4)
    assert load_tokenizer(str(tmp_path / "merged")).convert_tokens_to_ids(ADDED) == [first_new, first_new + 1]


def test_a_full_model_is_exported_with_its_new_rows(base: Path, tmp_path: Path) -> None:
    spec = spec_of(base)
    expected = logits(trained(spec, tmp_path / "iter_4.pth"))
    pth_to_hf(spec, tmp_path / "iter_4.pth", tmp_path / "hf", dtype="float32")
    again = load_model(ModelSpec(path=str(tmp_path / "hf")), device="cpu", dtype=torch.float32, train=False)
    torch.testing.assert_close(logits(again), expected)
    tokenizer = load_tokenizer(str(tmp_path / "hf"))
    assert tokenizer.convert_tokens_to_ids(ADDED) == [752, 753]
    assert "im_start" in str(tokenizer.chat_template)


def test_without_resize_vocab_a_larger_checkpoint_is_another_models(base: Path, tmp_path: Path) -> None:
    spec = spec_of(base)
    trained(spec, tmp_path / "iter_4.pth")
    with pytest.raises(UserError, match="does not fit"):
        pth_to_hf(spec_of(base, resize_vocab=False), tmp_path / "iter_4.pth", tmp_path / "hf")


@pytest.mark.parametrize(
    ("config", "tokens", "expected"),
    [
        ({"model_type": "llama", "max_position_embeddings": 2048}, 2048, {}),
        ({"model_type": "llama", "max_position_embeddings": 2048}, 5000, {"rope_scaling": 3.0}),
        (
            {
                "model_type": "internlm2",
                "max_position_embeddings": 2048,
                "rope_scaling": {"type": "dynamic", "factor": 2.0},
            },
            4096,
            {},
        ),
        (
            {
                "model_type": "internlm2",
                "max_position_embeddings": 2048,
                "rope_scaling": {"type": "linear", "factor": 2.0},
            },
            8192,
            {"rope_scaling": 4.0},
        ),
        (
            {"model_type": "qwen2", "max_position_embeddings": 64, "rope_parameters": {"rope_theta": 5.0}},
            65,
            {"rope_parameters": 2.0},
        ),
    ],
)
def test_positions_are_stretched_by_a_whole_number_and_only_where_they_must(
    config: dict[str, Any], tokens: int, expected: dict[str, float]
) -> None:
    changes = stretch_positions(config, tokens, "somewhere")
    assert {key: value["factor"] for key, value in changes.items()} == expected
    if "rope_parameters" in changes:
        assert changes["rope_parameters"] == {"rope_theta": 5.0, "rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "chatglm", "seq_length": 2048},
        {"model_type": "internlm", "max_position_embeddings": 2048},
        {"model_type": "llama", "max_position_embeddings": 2048, "rope_scaling": {"rope_type": "llama3", "factor": 8}},
    ],
)
def test_positions_of_another_kind_are_left_alone(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot be stretched"):
        stretch_positions(config, 4096, "somewhere")


@pytest.mark.parametrize("make", [make_tiny_internlm2, make_tied])
def test_a_stretched_model_reads_twice_as_far_and_says_so_wherever_it_goes(make: Any, tmp_path: Path) -> None:
    base = make(tmp_path / "base", max_position_embeddings=16)
    spec = spec_of(base, lora=LORA, max_position_embeddings=32, resize_vocab=False, tokenizer_options={})
    plain = load_model(ModelSpec(path=str(base)), device="cpu", dtype=torch.float32, train=False)
    stretched = load_model(
        ModelSpec(path=str(base), max_position_embeddings=32), device="cpu", dtype=torch.float32, train=False
    )
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    twice = 2 * torch.arange(5)[None]
    torch.testing.assert_close(logits(stretched, ids, position_ids=twice), logits(plain, ids))
    assert (logits(stretched, ids) - logits(plain, ids)).abs().max() > 1e-3

    expected = logits(trained(spec, tmp_path / "iter_4.pth"), ids)
    pth_to_hf(spec, tmp_path / "iter_4.pth", tmp_path / "hf", dtype="float32")
    chat = load_chat(base, adapter=tmp_path / "hf", template="internlm2_chat", device="cpu")
    torch.testing.assert_close(logits(chat.model, ids), expected)
    merge(base, tmp_path / "hf", tmp_path / "merged")
    merged = load_model(ModelSpec(path=str(tmp_path / "merged")), device="cpu", dtype=torch.float32, train=False)
    torch.testing.assert_close(logits(merged, ids), expected, atol=1e-4, rtol=1e-4)


def test_a_fully_trained_stretched_model_is_exported_stretched(tmp_path: Path) -> None:
    base = make_tiny_internlm2(tmp_path / "base", max_position_embeddings=16)
    spec = spec_of(base, max_position_embeddings=32, resize_vocab=False, tokenizer_options={})
    expected = logits(trained(spec, tmp_path / "iter_4.pth"), IDS.clamp(max=700))
    pth_to_hf(spec, tmp_path / "iter_4.pth", tmp_path / "hf", dtype="float32")
    again = load_model(ModelSpec(path=str(tmp_path / "hf")), device="cpu", dtype=torch.float32, train=False)
    torch.testing.assert_close(logits(again, IDS.clamp(max=700)), expected)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["max_position_embeddings"] == 16
