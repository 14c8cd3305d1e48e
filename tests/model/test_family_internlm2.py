"""InternLM2 against logits, hidden states, gradients and text that the original code computed (shared fixtures)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from xtuner.config.spec import ModelSpec
from xtuner.errors import UserError
from xtuner.model import register
from xtuner.model.attention import PACKED, packing_arguments
from xtuner.model.families.internlm2 import InternLM2Config, InternLM2ForCausalLM, InternLM2ForRewardModel
from xtuner.model.load import load_model
from xtuner.ops.packing import Packing

GOLDEN = Path(__file__).parents[1] / "golden" / "internlm2"
ATOL = 1e-4


def make(**changes):
    torch.manual_seed(0)
    config = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, **changes}
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, **config}
    return InternLM2ForCausalLM(InternLM2Config(**config)).eval()


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 3.0}])
def test_scaled_rope_is_a_function_of_the_sequence_alone(scaling):
    model = make(rope_scaling=scaling, max_position_embeddings=8, bias=True)
    short, long = torch.randint(40, (1, 6)), torch.randint(40, (1, 20))
    with torch.no_grad():
        before = model(short).logits
        far = model(long).logits
        assert torch.equal(model(short).logits, before)
        plain = make(max_position_embeddings=8, bias=True)
        plain.load_state_dict(model.state_dict())
        same_short = torch.allclose(plain(short).logits, before, atol=1e-5)
        same_long = torch.allclose(plain(long).logits, far, atol=1e-5)
    kind = scaling and scaling["type"]
    assert (same_short, same_long) == {None: (True, True), "dynamic": (True, False), "linear": (False, False)}[kind]


def test_dynamic_rope_has_the_base_of_the_formula():
    """base * (f*S/max - (f-1)) ** (d/(d-2)) for S > max: a plain model with that base computes the same."""
    model = make(rope_scaling={"type": "dynamic", "factor": 3.0}, max_position_embeddings=8, rope_theta=10000)
    same = make(rope_theta=10000 * (3.0 * 20 / 8 - 2.0) ** (8 / 6))
    same.load_state_dict(model.state_dict())
    ids = torch.randint(40, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, same(ids).logits, atol=1e-4, rtol=1e-4)


def test_bias_is_on_attention_only():
    names = {name for name, _ in make(bias=True).named_parameters() if name.endswith("bias")}
    assert {name.split("layers.0.")[1] for name in names if "layers.0." in name} == {
        "attention.wqkv.bias",
        "attention.wo.bias",
    }
    assert not any(name.endswith("bias") for name, _ in make(bias=False).named_parameters())


def test_unknown_rope_scaling_is_refused():
    with pytest.raises(Exception, match="linear or dynamic"):
        InternLM2Config(rope_scaling={"type": "yarn", "factor": 2.0})


def test_config_round_trip(tmp_path):
    config = InternLM2Config(rope_theta=1000000, rope_scaling={"type": "dynamic", "factor": 2.0}, dtype="bfloat16")
    config.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["rope_theta"] == 1000000
    assert raw["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    assert raw["torch_dtype"] == "bfloat16"
    again = AutoConfig.from_pretrained(tmp_path)
    again.architectures = config.architectures = None
    assert again.to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize("attention", ["eager", "sdpa", PACKED])
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForSequenceClassification])
def test_rewards_equal_the_original(auto_class, attention, tmp_path):
    register.register_families()
    folder = GOLDEN.parent / "internlm2_reward"
    model = auto_class.from_pretrained(folder, attn_implementation=attention, trust_remote_code=True)
    assert type(model) is InternLM2ForRewardModel
    expected = load_file(folder / "golden.safetensors")
    with torch.no_grad():
        for case in ("seq7", "seq33", "right_pad", "left_pad"):
            given = {key: expected[f"{case}.{key}"] for key in ("input_ids", "attention_mask")}
            torch.testing.assert_close(model(**given).logits, expected[f"{case}.logits"], atol=ATOL, rtol=0)
        states = model(expected["seq7.input_ids"], output_hidden_states=True)
    torch.testing.assert_close(states.logits, expected["seq7.logits"], atol=ATOL, rtol=0)
    torch.testing.assert_close(torch.stack(states.hidden_states), expected["seq7.hidden_states"], atol=ATOL, rtol=0)
    model.save_pretrained(tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors")
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_reward_model_is_not_taken_for_a_broken_one():
    with pytest.raises(UserError, match="is a reward model"):
        load_model(
            ModelSpec(path=str(GOLDEN.parent / "internlm2_reward")), device="cpu", dtype=torch.float32, train=False
        )


def test_a_conversation_is_judged_at_the_reward_token():
    model = InternLM2ForRewardModel.from_pretrained(GOLDEN.parent / "internlm2_reward")
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    with torch.no_grad():
        expected = model(torch.tensor([[*ids, 750]])).logits.item()
    assert model.get_score(tokenizer, messages) == pytest.approx(expected)


def test_dynamic_rope_says_the_same_with_and_without_a_cache():
    """Cached keys are turned anew when the sequence grows beyond the limit. One layer: what stands in the cache of the
    next ones has seen the shorter sequence."""
    model = make(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=8, num_hidden_layers=1)
    ids = torch.randint(40, (1, 20))
    with torch.no_grad():
        cache = model(ids[:, :6], use_cache=True).past_key_values
        for n in range(6, 20):
            last = model(ids[:, n : n + 1], past_key_values=cache, use_cache=True).logits[0, -1]
            torch.testing.assert_close(last, model(ids[:, : n + 1]).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_dynamic_rope_is_a_function_of_each_packed_segment():
    model = make(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=8)
    model.set_attn_implementation(PACKED)
    lengths = [12, 5, 20]
    rows = [torch.randint(40, (1, length)) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    borders = packing_arguments(Packing.from_lengths(lengths), model)
    with torch.no_grad():
        alone = torch.cat([model(row).logits for row in rows], dim=1)
        packed = model(torch.cat(rows, dim=1), position_ids=positions, use_cache=False, **borders).logits
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
