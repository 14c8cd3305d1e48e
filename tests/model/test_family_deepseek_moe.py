"""DeepSeek-MoE against what the original code computed: experts, and the penalty that keeps them evenly busy."""

import pytest
import torch
from family_golden import (
    check_cache,
    check_packing,
    load,
    make_batch,
    open_golden,
)

from xtuner.config.spec import LoraSpec
from xtuner.model.families.deepseek_moe import DeepseekConfig, DeepseekForCausalLM, DeepseekMoE
from xtuner.objective.sft import SFT

NAME = "deepseek_moe"


def make(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16}
    experts = {"n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1}
    heads = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
    config = DeepseekConfig(**{**sizes, **experts, **heads, **ends, **changes})
    config._attn_implementation = "xtuner_packed"
    return DeepseekForCausalLM(config).eval()


def gradients(model, totals, weight):
    model.zero_grad()
    for total in totals:
        (total / weight).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_the_penalty_shapes_the_gradient_and_not_the_number():
    model, golden = open_golden(NAME)
    plain, _ = open_golden(NAME)
    for layer in plain.model.layers[1:]:
        layer.mlp.alpha = 0
    found = []
    for one in (model, plain):
        out = one.train()(golden["seq33.input_ids"], labels=golden["seq33.labels"])
        out.loss.backward()
        found.append((out.loss, one.model.layers[2].mlp.gate.weight.grad))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert (found[0][1] - found[1][1]).norm() > 1e-3 * found[1][1].norm()


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_does_not_hang_on_how_samples_are_packed(recompute):
    """The penalty is that of each segment, and weighs with its targets."""
    model = make(aux_loss_alpha=1.0).train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rows = [torch.randint(40, (length,)) for length in (13, 5, 21, 2)]
    objective = SFT()
    weight = sum(len(row) - 1 for row in rows)
    packed = gradients(model, [objective(model, make_batch(rows)).total], weight)
    alone = gradients(model, [objective(model, make_batch([row])).total for row in rows], weight)
    assert packed.keys() == alone.keys()
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, alone[name], atol=1e-5, rtol=1e-4, msg=name)
    # by hand: every segment's own mean loss and penalty, weighted by its targets
    model.zero_grad()
    for row in rows:
        (model(row[None], labels=row[None]).loss * (len(row) - 1) / weight).backward()
    gate = model.model.layers[1].mlp.gate.weight
    torch.testing.assert_close(packed["model.layers.1.mlp.gate.weight"], gate.grad, atol=1e-5, rtol=1e-4)


FORMS = [
    {"norm_topk_prob": True, "attention_bias": True},
    {"n_shared_experts": None, "seq_aux": False},
    {"moe_layer_freq": 2, "first_k_dense_replace": 0, "num_experts_per_tok": 6},
    {"n_routed_experts": None, "num_experts_per_tok": None},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
]


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, tmp_path):
    model = make(**form)
    check_packing(model, 40, atol=1e-4)
    check_cache(model, 40)
    loss = SFT()(model.train(), make_batch([torch.arange(3, 20), torch.arange(9, 15)]))
    loss.total.backward()
    assert model.model.embed_tokens.weight.grad.isfinite().all()
    with_experts = [isinstance(layer.mlp, DeepseekMoE) for layer in model.model.layers]
    expected = [False, True, True]
    if "moe_layer_freq" in form:
        expected = [True, False, True]
    if "n_routed_experts" in form:
        expected = [False] * 3
    assert with_experts == expected
    model.save_pretrained(tmp_path)
    again = DeepseekForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits, atol=1e-4, rtol=1e-4)


def test_chosen_weights_may_be_brought_to_one():
    hidden = torch.randn(1, 5, 32)
    for norm in (True, False):
        weights = make(norm_topk_prob=norm).model.layers[1].mlp.gate(hidden)[1]
        assert torch.allclose(weights.sum(-1), torch.ones(1, 5)) == norm


@pytest.mark.parametrize("bits", [4, 8])
def test_in_few_bits_gate_and_head_stay(bits):
    model = load(NAME, quant=bits, lora=LoraSpec())
    base = model.get_base_model()
    assert type(base.lm_head) is torch.nn.Linear
    assert base.model.layers[1].mlp.gate.weight.dtype == torch.float32
    adapted = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name}
    expected = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # as 0.1.x
    assert adapted == expected
    assert SFT()(model, make_batch([torch.arange(3, 20)])).total.isfinite()


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="softmax"):
        DeepseekConfig(scoring_func="sigmoid")
    with pytest.raises(ValueError, match="num_experts_per_tok"):
        DeepseekConfig(n_routed_experts=4, num_experts_per_tok=5)
