"""Our attention function inside models: packed equals alone, padding and caches keep working, misuse is refused."""

import pytest
import tiny
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.masking_utils import create_causal_mask

from xtuner.errors import UserError
from xtuner.model.attention import (
    PACKED,
    attend,
    check_attention,
    check_packing,
    check_windows,
    packing_arguments,
    wants_borders,
)
from xtuner.ops.packing import Packing

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


def load(make, folder, implementation):
    return AutoModelForCausalLM.from_pretrained(make(folder), attn_implementation=implementation, dtype=torch.float32)


MAKERS = [tiny.make_tiny_internlm2, tiny.make_tiny_llama, tiny.make_tiny_qwen2]


def mistral(window, implementation=PACKED):
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, head_dim=8, sliding_window=window, attn_implementation=implementation)
    return MistralForCausalLM(config).eval()


def test_with_borders_transformers_looks_for_none(tmp_path):
    """It would look in the positions, and the host would wait for the card there."""
    model = load(tiny.make_tiny_llama, tmp_path, PACKED)
    ready = packing_arguments(Packing.from_lengths([3, 4]), model)["attention_mask"]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    rows = {"inputs_embeds": torch.zeros(1, 7, 4), "past_key_values": None, "position_ids": positions}
    assert create_causal_mask(config=model.config, attention_mask=ready, **rows) is ready
    model.set_attn_implementation("eager")
    assert "attention_mask" not in packing_arguments(Packing.from_lengths([3, 4]), model)


def test_a_row_of_one_segment_has_borders_where_the_model_takes_packs(tmp_path):
    """So it runs the kernels of all rows, and transformers does not look for borders: a card would be waited for."""
    model = load(tiny.make_tiny_llama, tmp_path, PACKED)
    one, two = Packing.from_lengths([7]), Packing.from_lengths([3, 4])
    assert (wants_borders(one, model), wants_borders(two, model)) == (False, True)
    check_packing(model)
    assert wants_borders(one, model)
    model.set_attn_implementation("sdpa")
    assert (wants_borders(one, model), wants_borders(two, model)) == (False, True)


def packed_and_alone(model, lengths):
    torch.manual_seed(1)
    rows = [torch.randint(3, 90, (1, length)) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    borders = packing_arguments(Packing.from_lengths(lengths), model)
    with torch.no_grad():
        alone = torch.cat([model(row).logits for row in rows], dim=1)
        packed = model(torch.cat(rows, dim=1), position_ids=positions, use_cache=False, **borders).logits
    return packed, alone


@pytest.mark.parametrize("make", MAKERS)
def test_packed_equals_alone(make, tmp_path):
    packed, alone = packed_and_alone(load(make, tmp_path, PACKED), [4, 1, 11, 6])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scaling", ["linear", "dynamic"])
def test_packed_equals_alone_with_scaled_rope(scaling, tmp_path):
    folder = tiny.make_tiny_internlm2(
        tmp_path, rope_scaling={"type": scaling, "factor": 2.0}, max_position_embeddings=8, rope_theta=10000
    )
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=PACKED, dtype=torch.float32)
    packed, alone = packed_and_alone(model, [4, 20, 9, 13])
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 3])
def test_sliding_windows_are_honoured(window):
    packed, alone = packed_and_alone(mistral(window), [4, 1, 11, 6])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        packed_and_alone(mistral(window, "eager"), [4, 1, 11, 6])[1], alone, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("make", MAKERS)
def test_padding_and_cache_equal_the_eager_function(make, tmp_path):
    ours, eager = (load(make, tmp_path / name, name) for name in (PACKED, "eager"))
    ids = torch.randint(3, 400, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(ours.generate(ids, **options), eager.generate(ids, **options))
    with torch.no_grad():
        prefix = ours(ids[:1, :5], use_cache=True).past_key_values
        behind = ours(ids[:1, 5:], past_key_values=prefix).logits
        torch.testing.assert_close(behind, eager(ids[:1]).logits[:, 5:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", [PACKED, "sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_accepts_good_models(implementation, dtype, tmp_path):
    folder = tiny.make_tiny_llama(tmp_path)
    check_packing(AutoModelForCausalLM.from_pretrained(folder, attn_implementation=implementation, dtype=dtype))


class Forgetful(MistralForCausalLM):
    """A model that drops what it does not know, as some do."""

    def forward(self, input_ids, use_cache=None, **kwargs):
        return super().forward(input_ids=input_ids, use_cache=use_cache, position_ids=kwargs.get("position_ids"))


class Strict(MistralForCausalLM):
    """A model that takes its own arguments only."""

    def forward(self, input_ids, position_ids=None, use_cache=None):
        return super().forward(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_refuses_models_that_leak(dtype):
    config = MistralConfig(**SIZES, head_dim=8, sliding_window=None, attn_implementation=PACKED)
    with pytest.raises(UserError, match="would see each other"):
        check_packing(Forgetful(config).to(dtype))
    with pytest.raises(UserError, match="does not take packed rows"):
        check_packing(Strict(config).to(dtype))


def test_features_we_do_not_know_are_refused():
    states = torch.zeros(1, 2, 3, 8)
    with pytest.raises(UserError, match=r"position bias.*attention: eager"):
        attend(torch.nn.Module(), states, states, states, None, position_bias=torch.zeros(3, 3))


@pytest.mark.parametrize("implementation", [PACKED, "eager"])
def test_a_soft_cap_holds_with_padding_and_cache(implementation):
    config = Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=2.0, sliding_window=3)
    models = []
    for name in ("eager", implementation):
        torch.manual_seed(0)
        config._attn_implementation = name
        models.append(Gemma2ForCausalLM(config).eval())
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    eager, ours = (model.generate(ids, **options) for model in models)
    assert torch.equal(ours, eager)


class Shortened(MistralForCausalLM):
    """A model that leaves something out unless its attention is eager."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        if self.config._attn_implementation != "eager":
            out.logits = out.logits + torch.linspace(-1, 1, out.logits.shape[-1]) * out.logits.std()
        return out


@pytest.mark.parametrize(("implementation", "name"), [(PACKED, "packed"), ("sdpa", "sdpa")])
def test_attention_is_compared_with_the_formula(implementation, name):
    config = MistralConfig(**SIZES, head_dim=8, sliding_window=3, attn_implementation=implementation)
    model = Shortened(config).train()
    with pytest.raises(UserError, match=rf"The {name} attention leaves out something.*model\.attention=eager"):
        check_attention(model)
    assert model.config._attn_implementation == implementation
    assert model.training
    for dtype in (torch.float32, torch.bfloat16):
        check_attention(MistralForCausalLM(config).to(dtype))


def test_check_leaves_the_model_as_it_was(tmp_path):
    model = load(tiny.make_tiny_llama, tmp_path, PACKED).train()
    before = torch.random.get_rng_state()
    check_packing(model)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "use_sliding_window": True}
MASKED = {
    "qwen2_moe": ("sliding_window", {**EXPERTS, "layer_types": ["sliding_attention", "full_attention"]}),
    "phimoe": ("sliding_window", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama4_text": (
        "attention_chunk_size",
        {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "moe_layers": [1]},
    ),
}
"""Kinds that look back so far and no farther, and say it to their mask alone: the setting that says how far."""


def masked(kind, window, implementation=PACKED):
    torch.manual_seed(0)
    name, sizes = MASKED[kind]
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **SIZES, **sizes, **special, **{name: window})
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


@pytest.mark.parametrize("kind", MASKED)
def test_a_window_that_only_the_mask_knows_is_refused_where_samples_are_longer(kind):
    """Such windows are thousands of tokens in real models, which the short rows of the proofs never reach."""
    model = masked(kind, 64)
    check_attention(model)
    check_packing(model)
    assert model.config._attn_implementation == PACKED
    check_windows(model, 64)
    with pytest.raises(UserError, match="look at 64 tokens at most") as caught:
        check_windows(model, 65)
    assert caught.value.fix == "Set data.max_length=64, or model.attention=sdpa"
    with pytest.raises(UserError, match="leaves out something"):
        check_attention(masked(kind, 4))


@pytest.mark.parametrize("kind", MASKED)
def test_what_is_advised_then_is_exact(kind):
    library = masked(kind, 4, "sdpa")
    check_attention(library)
    check_packing(library)
    check_windows(library, 5)
    packed, _ = packed_and_alone(library, [4, 1, 11, 6])
    _, alone = packed_and_alone(masked(kind, 4, "eager"), [4, 1, 11, 6])
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


def test_a_mask_that_no_layer_takes_is_no_window():
    config = masked("qwen2_moe", 64).config
    config.layer_types = 2 * ["full_attention"]
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
    check_attention(model)
    check_windows(model, 1000)


@pytest.mark.parametrize("window", [None, 4])
def test_windows_that_attention_is_told_are_no_reason_to_refuse(window):
    model = mistral(window)
    check_attention(model)
    check_windows(model, 1000)
