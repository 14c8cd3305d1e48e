"""InternLM's config: rotation under keys of its own, biases on four projections, and keys that mean nothing."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from xtuner.model import register
from xtuner.model.families.baichuan import BaichuanConfig
from xtuner.model.families.internlm import InternLMConfig, InternLMForCausalLM
from xtuner.model.families.internlm2 import InternLM2Config

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def make(**changes):
    torch.manual_seed(0)
    return InternLMForCausalLM(InternLMConfig(**SIZES, num_attention_heads=4, initializer_range=0.3, **changes)).eval()


def twin(model, **changes):
    other = make(**changes)
    other.load_state_dict(model.state_dict())
    return other


def test_biases_are_on_the_four_projections():
    names = {name.split("layers.0.")[-1] for name, _ in make(bias=True).named_parameters() if name.endswith("bias")}
    assert {name for name in names if "layers" not in name} == {f"self_attn.{x}_proj.bias" for x in "qkvo"}
    assert not any(name.endswith("bias") for name, _ in make(bias=False).named_parameters())


@pytest.mark.parametrize(
    ("rotary", "base"),
    [
        (None, 10000 * (20 / 8) ** (8 / 6)),
        ({"base": 10000, "type": "dynamic"}, 10000 * (20 / 8) ** (8 / 6)),
        ({"base": 5000, "type": "dynamic", "scaling_factor": 3.0}, 5000 * (3 * 20 / 8 - 2) ** (8 / 6)),
        ({"base": 300, "type": "origin"}, 300),
    ],
)
def test_rotation_is_a_function_of_the_sequence_alone(rotary, base):
    model = make(rotary=rotary, max_position_embeddings=8)
    same = twin(model, rotary={"base": base, "type": "origin"})
    short = twin(model, rotary={"base": (rotary or {"base": 10000})["base"], "type": "origin"})
    ids = torch.randint(40, (1, 20))
    with torch.no_grad():
        before = model(ids[:, :8]).logits
        torch.testing.assert_close(before, short(ids[:, :8]).logits)
        torch.testing.assert_close(model(ids).logits, same(ids).logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(model(ids[:, :8]).logits, before)


def test_keys_of_the_20b_files_are_kept_and_mean_nothing(tmp_path):
    register.register_families()
    extra = {"rope_theta": 77, "num_key_value_heads": 1, "rope_scaling": None, "attn_implementation": "eager"}
    raw = {"model_type": "internlm", **SIZES, "num_attention_heads": 4, "bias": False, "rotary": None, **extra}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = AutoConfig.from_pretrained(tmp_path)
    model = InternLMForCausalLM(config)
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (32, 32)
    assert model.model.rope().base == 10000
    config.save_pretrained(tmp_path)
    again = json.loads((tmp_path / "config.json").read_text())
    assert (again["rope_theta"], again["num_key_value_heads"]) == (77, 1)


def test_what_it_does_not_know_is_refused():
    with pytest.raises(Exception, match="origin or dynamic"):
        InternLMConfig(rotary={"base": 10000, "type": "yarn"})
    with pytest.raises(Exception, match="does not divide"):
        InternLMConfig(hidden_size=30, num_attention_heads=4)


def test_a_config_that_names_no_class_gets_the_usual_one():
    register.register_families()
    config = InternLM2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2)
    assert type(AutoModel.from_config(config)).__name__ == "InternLM2Model"
    config = BaichuanConfig(**SIZES, num_attention_heads=4)
    assert type(AutoModelForCausalLM.from_config(config)).__name__ == "BaichuanForCausalLM"
