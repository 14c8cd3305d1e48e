"""MiniCPM (2B) against what the original code computed, and its scalings in training, in 4 bits and after a merge."""

import json

import pytest
import torch
from family_golden import (
    check_cache,
    check_packing,
    load,
    open_golden,
)

from xtuner.model.families.minicpm import MiniCPMConfig, MiniCPMForCausalLM
from xtuner.model.head import check_head

NAME = "minicpm_2b"


def make(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    scales = {"scale_emb": 12, "dim_model_base": 16, "scale_depth": 1.4, "initializer_range": 0.3}
    config = {**sizes, **scales, "num_attention_heads": 4, "num_key_value_heads": 2, **changes}
    return MiniCPMForCausalLM(MiniCPMConfig(**config, attn_implementation="xtuner_packed")).eval()


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 3.0}])
def test_grouped_heads_and_scaled_rope(scaling):
    # one layer, since with more what is behind a cache has seen a shorter sequence, which dynamic scaling turns less
    layers = 1 if scaling and scaling["type"] == "dynamic" else 2
    model = make(rope_scaling=scaling, max_position_embeddings=8, attention_bias=True, num_hidden_layers=layers)
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (16, 32)
    assert model.model.layers[0].self_attn.o_proj.bias is not None
    check_packing(model, 40, (4, 20, 9, 13), atol=1e-4)
    check_cache(model, 40)


def test_every_scale_counts():
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        plain = make().state_dict()
        logits = []
        for changes in ({}, {"scale_emb": 1}, {"scale_depth": 1}, {"dim_model_base": 32}):
            model = make(**changes)
            model.load_state_dict(plain)
            logits.append(model(ids).logits)
    assert all((other - logits[0]).abs().max() > 1e-2 for other in logits[1:])
    torch.testing.assert_close(logits[3], logits[0] * 2)  # the head sees hidden / (32 / 16), then hidden / (32 / 32)


def test_the_tied_head_is_one_weight_and_may_be_parted(tmp_path):
    model = make()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    check_head(model)
    apart = make(tie_word_embeddings=False)
    assert apart.lm_head.weight is not apart.model.embed_tokens.weight
    apart.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert not {"logits_scaling", "keys_to_ignore_at_inference"} & config.keys()
    again = MiniCPMForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, apart.lm_head.weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_in_few_bits_the_head_stays_and_is_scaled(bits):
    model = load(NAME, quant=bits, train=False)
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight is model.model.embed_tokens.weight
    check_head(model)
    expected, golden = open_golden(NAME)
    with torch.no_grad():
        found, logits = (one(golden["seq33.input_ids"]).logits for one in (model, expected))
    assert (found - logits).norm() < 0.35 * logits.norm()


def test_relatives_are_refused():
    with pytest.raises(ValueError, match="experts"):
        MiniCPMConfig(num_experts=8)
    with pytest.raises(Exception, match="linear or dynamic"):
        MiniCPMConfig(rope_scaling={"rope_type": "longrope", "factor": 4.0})
