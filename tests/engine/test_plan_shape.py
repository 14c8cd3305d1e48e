"""What a plan knows of a model from its config.json alone, against the modules that are built of it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import xtuner.model  # noqa: F401  registers the families
from xtuner.checkpoint.kind import KINDS, TIED
from xtuner.engine.plan.known import LEFT_OUT
from xtuner.engine.plan.shape import load_shape, shape_of
from xtuner.errors import UserError

SMALL = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 128, "pad_token_id": 0}
GQA = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 96}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
EXPERTS = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
DEEPSEEK = {**SMALL, "num_key_value_heads": 4, "intermediate_size": 96, **EXPERTS, "n_routed_experts": 8}
DEEPSEEK |= {"n_shared_experts": 2, "first_k_dense_replace": 1}
OLD = {"n_layer": 3, "n_head": 4, "vocab_size": 128, "n_positions": 8}
CONFIGS = {
    "llama": GQA,
    "qwen2": {**GQA, "tie_word_embeddings": True},
    "qwen3": {**GQA, "head_dim": 32},
    "mistral": {**GQA, "sliding_window": 8},
    "gemma": {**GQA, "head_dim": 32},
    "gemma2": {**GQA, "head_dim": 32},
    "gemma3_text": {**GQA, "head_dim": 32},
    "phi3": GQA,
    "glm4": {**GQA, "head_dim": 16},
    "internlm2": GQA,
    "starcoder2": GQA,
    "baichuan": {**SMALL, "intermediate_size": 96},
    "qwen": {**SMALL, "intermediate_size": 96, "kv_channels": 16},
    "bloom": {**OLD, "hidden_size": 64},
    "gpt_bigcode": {**OLD, "n_embd": 64, "n_inner": 256, "multi_query": True},
    "gpt2": {**OLD, "n_embd": 64},
    "falcon": {**SMALL, "multi_query": True, "num_kv_heads": 4},
    "mixtral": {**GQA, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {**GQA, **EXPERTS, "num_experts": 8, "shared_expert_intermediate_size": 48, "decoder_sparse_step": 2},
    "qwen3_moe": {**GQA, **EXPERTS, "num_experts": 8, "head_dim": 16, "mlp_only_layers": [0]},
    "deepseek": DEEPSEEK,
    "deepseek_v2": {**DEEPSEEK, **LATENT, "q_lora_rank": None},
    "minicpm3": {**SMALL, "num_key_value_heads": 4, "intermediate_size": 96, "q_lora_rank": 24, **LATENT},
}


def build(kind):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**CONFIGS[kind]))


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_sizes_are_those_of_the_module(kind):
    """Biases, norms of heads and a few learned positions apart."""
    held = dict(build(kind).named_parameters())
    shape = shape_of({"model_type": kind, **CONFIGS[kind]}, "here", {})
    assert shape.num_parameters == pytest.approx(sum(weight.numel() for weight in held.values()), rel=0.025)
    matrices = sum(weight.numel() for name, weight in held.items() if weight.ndim >= 2 and ("." in name))
    ends = shape.embedding * (1 if shape.tied else 2)
    assert sum(linear.size for linear in shape.linears) + ends == pytest.approx(matrices, rel=0.005)


# billions of weights that the model cards state, from the config.json files of the repositories
@pytest.mark.parametrize(
    ("config", "billions"),
    [
        ({"model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32,
          "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
          "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936}, 30.53),
        ({"model_type": "deepseek", "num_hidden_layers": 28, "hidden_size": 2048, "num_attention_heads": 16,
          "num_key_value_heads": 16, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64,
          "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "vocab_size": 102400}, 16.38),
        ({"model_type": "gemma2", "num_hidden_layers": 42, "hidden_size": 3584, "num_attention_heads": 16,
          "num_key_value_heads": 8, "head_dim": 256, "intermediate_size": 14336, "vocab_size": 256000}, 9.24),
    ],
    ids=["Qwen3-30B-A3B", "deepseek-moe-16b-base", "gemma-2-9b"],
)  # fmt: skip
def test_sizes_of_known_models(config, billions):
    assert shape_of(config, "here", {}).num_parameters / 1e9 == pytest.approx(billions, rel=2e-3)


def test_a_token_runs_through_some_experts():
    shape = shape_of({"model_type": "deepseek", **CONFIGS["deepseek"]}, "here", {})
    each = next(x for x in shape.linears if x.name == "up_proj" and x.share < 1)
    assert (each.outputs, each.count, each.share, each.fused) == (24, 2 * 8, 0.25, False)
    # a layer of 96, and two with 2 of 8 experts of 24 and shared ones of 48
    assert shape.inner == round((96 + 2 * (2 * 24 + 48)) / 3)


def test_kinds_whose_head_is_the_embedding():
    found = {kind for kind in {*KINDS, "gpt2", "opt"} if CONFIG_MAPPING[kind]().tie_word_embeddings}
    assert set(TIED) == found


@pytest.mark.parametrize("kind", sorted(LEFT_OUT))
def test_what_is_left_out_is_what_transformers_has(kind):
    default = CONFIG_MAPPING[kind]()
    assert {key: getattr(default, key) for key in LEFT_OUT[kind]} == LEFT_OUT[kind]


def test_the_language_model_of_one_that_sees(tmp_path):
    """The config.json of LLaVA 1.5 says nothing but the kind and the vocabulary."""
    inside = {"model_type": "llama", "vocab_size": 32064}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": inside}), "utf-8")
    assert load_shape(str(tmp_path)).num_parameters / 1e9 == pytest.approx(6.74, rel=1e-3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000"),
        ({"num_attention_heads": "four"}, "num_attention_heads is 'four'"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"num_key_value_heads": 3}, "4 heads share the keys of 3"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"intermediate_size": "wide"}, "intermediate_size is 'wide'"),
        ({"num_local_experts": "many"}, "num_local_experts is 'many'"),
        ({"num_local_experts": 4, "num_experts_per_tok": 9}, "to 9 of 4 experts"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(wrong, said):
    with pytest.raises(UserError, match=said) as caught:
        shape_of({"model_type": "llama", **GQA, **wrong}, "here", {})
    assert caught.value.fix
