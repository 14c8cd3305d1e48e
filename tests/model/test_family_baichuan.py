"""What is special in Baichuan: four forms under one name, linear biases as columns, and a head that is normed."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from xtuner.config.spec import LoraSpec, ModelSpec
from xtuner.errors import UserError
from xtuner.model import register
from xtuner.model.attention import PACKED
from xtuner.model.families.alibi import alibi_slopes, build_alibi
from xtuner.model.families.baichuan import BaichuanConfig, BaiChuanForCausalLM, BaichuanForCausalLM
from xtuner.model.families.norm_head import NormHead
from xtuner.model.head import check_head, find_head
from xtuner.model.load import load_model
from xtuner.ops.attention import causal_attention, eager_attention, packed_attention
from xtuner.ops.linear_cross_entropy import linear_cross_entropy

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 90}


def make(**changes):
    torch.manual_seed(0)
    config = BaichuanConfig(**SIZES, num_attention_heads=3, initializer_range=0.3, **changes)
    return BaichuanForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("keys", "alibi", "norm_head"),
    [
        ({"max_position_embeddings": 4096, "architectures": ["BaiChuanForCausalLM"]}, False, False),
        ({"max_position_embeddings": 4096, "architectures": ["BaichuanForCausalLM"]}, False, True),
        ({"max_position_embeddings": 4096, "vocab_size": 125696}, False, True),
        ({"max_position_embeddings": 4096, "z_loss_weight": 0}, False, True),
        ({"model_max_length": 4096, "architectures": ["BaichuanForCausalLM"]}, True, False),
        ({"model_max_length": 4096, "vocab_size": 125696}, True, True),
        ({"model_max_length": 4096, "vocab_size": 64000, "tokenizer_class": "BaichuanTokenizer"}, True, False),
        ({"model_max_length": 4096, "tokenizer_class": "BaichuanTokenizer"}, True, True),
        ({"model_max_length": 4096, "tokenizer_class": "BaichuanTokenizer", "norm_head": False}, True, False),
    ],
)
def test_four_forms_are_told_apart_also_after_saving(keys, alibi, norm_head, tmp_path):
    config = BaichuanConfig(**{"vocab_size": 90, **keys})
    assert (config.alibi, config.norm_head, config.max_position_embeddings) == (alibi, norm_head, 4096)
    config.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert ("max_position_embeddings" in raw) == (not alibi)
    assert "alibi" not in raw
    again = BaichuanConfig.from_pretrained(tmp_path)
    assert (again.alibi, again.norm_head) == (alibi, norm_head)


def test_the_first_7b_keeps_its_spelling(tmp_path):
    register.register_families()
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "baichuan_7b")
    assert type(model) is BaiChuanForCausalLM
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BaiChuanForCausalLM"]


@pytest.mark.parametrize("heads", [1, 4, 6, 40])
def test_slopes_are_those_of_the_paper(heads):
    slopes = alibi_slopes(heads)
    power = 2 ** int(math.log2(heads))
    assert slopes[:power] == pytest.approx([2 ** (-8 * (head + 1) / power) for head in range(power)])
    odd = [2 ** (-8 * (head + 1) / (2 * power)) for head in range(0, 2 * power, 2)]
    assert slopes[power:] == pytest.approx(odd[: heads - power])


def biased(query, key, value, slopes):
    """The formula: scores plus slope * (key's place - query's place), in fp64."""
    places = torch.arange(query.shape[2])
    distance = (places[None] - places[:, None]).double()
    scores = query.double() @ key.double().transpose(2, 3) * query.shape[-1] ** -0.5
    scores = scores + torch.tensor(slopes, dtype=torch.float32).double()[None, :, None, None] * distance
    scores = scores.masked_fill(distance > 0, -torch.inf)
    return scores.softmax(-1) @ value.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_columns_are_the_bias_in_any_precision_far_into_a_sequence(dtype):
    """A bias of bfloat16 itself would be wrong by 8 at the places of this test."""
    length, size, far = 40, 16, 5000
    query, key, value = (torch.randn(1, 6, length, size).to(dtype) for _ in range(3))
    alibi = build_alibi(6, size**-0.5, torch.arange(far, far + length)[None])
    wide = functional.pad(value, (0, 8))
    expected = biased(query, key, value, alibi_slopes(6))
    found = causal_attention(alibi.query(query), alibi.key(key), wide, scale=size**-0.5)[..., :size]
    tolerance = 2e-3 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    causal = torch.full((length, length), -torch.inf).triu(1)
    plain, _ = eager_attention(
        torch.nn.Module().eval(), alibi.query(query), alibi.key(key), wide, causal[None, None], scaling=size**-0.5
    )
    torch.testing.assert_close(plain.transpose(1, 2)[..., :size].double(), expected, atol=tolerance, rtol=tolerance)


def test_packed_segments_have_their_own_places():
    lengths = [5, 1, 9]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    query, key, value = (torch.randn(1, 6, sum(lengths), 16) for _ in range(3))
    alibi = build_alibi(6, 0.25, positions)
    borders = torch.tensor([0, 5, 6, 15], dtype=torch.int32)
    wide = functional.pad(value, (0, 8))
    found = packed_attention(alibi.query(query), alibi.key(key), wide, borders, 9, scale=0.25)[..., :16]
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    expected = torch.cat([biased(*part, alibi_slopes(6)) for part in parts], dim=2)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa", PACKED])
def test_biases_reach_through_the_cache(attention):
    model = make(model_max_length=64)
    model.set_attn_implementation(attention)
    ids = torch.randint(3, 90, (1, 20))
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :13], use_cache=True)
        rest = [model(ids[:, 13:15], past_key_values=first.past_key_values, use_cache=True).logits]
        rest += [
            model(ids[:, n : n + 1], past_key_values=first.past_key_values, use_cache=True).logits
            for n in range(15, 20)
        ]
    torch.testing.assert_close(torch.cat([first.logits, *rest], dim=1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_head_is_normed_with_gradients_also_in_chunks(frozen):
    model = make(model_max_length=64, norm_head=True)
    check_head(model)
    head = find_head(model)
    assert isinstance(head.module, NormHead)
    head.module.weight.requires_grad_(not frozen)
    hidden = torch.randn(30, 48, requires_grad=True)
    labels = torch.randint(90, (30,))
    expected = functional.cross_entropy(hidden @ functional.normalize(head.module.weight).T, labels, reduction="sum")
    wanted = torch.autograd.grad(expected, [hidden] if frozen else [hidden, head.module.weight])
    loss = linear_cross_entropy(hidden, head, labels, 7, parameters=head.parameters)
    found = torch.autograd.grad(loss, [hidden] if frozen else [hidden, head.module.weight])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, wanted)


def test_a_larger_vocabulary_keeps_the_head_normed():
    model = make(model_max_length=64, norm_head=True)
    model.resize_token_embeddings(100, mean_resizing=False)
    assert isinstance(model.lm_head, NormHead)
    assert model.lm_head.weight.shape == (100, 48)
    assert model.get_output_embeddings() is model.lm_head
    check_head(model)


def test_tied_heads_stay_tied(tmp_path):
    model = make(model_max_length=64, norm_head=True, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    again = BaichuanForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert isinstance(again.lm_head, NormHead)


def test_an_adapter_on_a_normed_head_is_refused_and_the_head_as_a_whole_is_trained():
    path = str(GOLDEN / "baichuan2_13b")
    spec = ModelSpec(path=path, lora=LoraSpec(targets=["lm_head"]))
    with pytest.raises(UserError, match="could not be merged"):
        load_model(spec, device="cpu", dtype=torch.float32, train=True)
    spec = ModelSpec(path=path, lora=LoraSpec(targets=["W_pack"], modules_to_save=["lm_head"]))
    model = load_model(spec, device="cpu", dtype=torch.float32, train=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lm_head" in name for name in trained)
    check_head(model)
