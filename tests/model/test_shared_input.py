"""Adapted layers that read the same input are found by watching the model, and give what each would alone."""

from functools import partial

import pytest
import tiny
import torch
from torch.fx import GraphModule

from xtuner.config.spec import LoraSpec, ModelSpec, QuantSpec
from xtuner.model.load import load_model
from xtuner.model.shared_input import SharedInput, compute_apart
from xtuner.ops import lora_linear as ops

IDS = torch.arange(5, 25).view(2, 10)


def load(folder, dtype=torch.float32, **form):
    torch.manual_seed(0)
    spec = ModelSpec(path=str(folder), **{"lora": LoraSpec(r=4), **form})
    model = load_model(spec, device="cpu", dtype=dtype, train=True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model


def groups(model):
    """Return the last parts of the names of the layers that share, of layer 0."""
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    shared = {id(module.shared_input): module.shared_input for module in names if _shares(module)}
    return [[names[layer] for layer in each.layers] for each in shared.values()]


def _shares(module):
    return getattr(module, "shared_input", None) is not None


def results(model):
    """Return the logits and all gradients."""
    model.zero_grad()
    logits = model(input_ids=IDS, use_cache=False).logits
    logits.logsumexp(-1).sum().backward()
    return {"logits": logits.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def left_over(model):
    return [module for module in model.modules() if _shares(module) and module.shared_input.outputs]


def test_layers_are_found_by_what_they_read(tmp_path):
    llama = groups(load(tiny.make_tiny_llama(tmp_path / "llama")))
    assert llama == 2 * [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]
    internlm2 = groups(load(tiny.make_tiny_internlm2(tmp_path / "internlm2")))  # its query, key and value are one layer
    assert internlm2 == 2 * [["w1", "w3"]]
    some = load(tiny.make_tiny_llama(tmp_path / "some"), lora=LoraSpec(r=4, targets=["q_proj", "v_proj", "up_proj"]))
    assert groups(some) == 2 * [["q_proj", "v_proj"]]


@pytest.mark.parametrize(
    "lora",
    [
        LoraSpec(r=4, modules_to_save=["lm_head"]),
        LoraSpec(r=4, targets=["k_proj", "v_proj"], modules_to_save=["norm", "embed_tokens"]),
        LoraSpec(r=4, targets=["k_proj", "v_proj"], bias="all"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_are_trained_whole_are_of_another_format(tmp_path, lora, dtype):
    """fp32 beside 16 bits, which is how every card that is not asked otherwise trains."""
    model = load(tiny.make_tiny_llama(tmp_path, attention_bias=True), lora=lora, dtype=dtype)
    assert ["k_proj", "v_proj"] in [names[-2:] for names in groups(model)]
    with torch.autocast("cpu", dtype):
        assert all(torch.isfinite(value).all() for value in results(model).values())


@pytest.mark.parametrize("recompute", ["none", "layers", "mlp"])
@pytest.mark.parametrize("quant", [None, QuantSpec(), QuantSpec(bits=8)])
def test_results_are_those_of_layers_that_compute_apart(tmp_path, quant, recompute):
    model = load(tiny.make_tiny_llama(tmp_path), quant=quant, recompute=recompute)
    together = results(model)
    assert not left_over(model)
    compute_apart(model)
    assert groups(model) == []
    for name, expected in results(model).items():
        torch.testing.assert_close(together[name], expected, msg=name)


def test_it_is_one_call_for_all(tmp_path, monkeypatch):
    model = load(tiny.make_tiny_llama(tmp_path), recompute="none")
    sizes = []
    monkeypatch.setattr(
        "xtuner.model.shared_input.lora_linear",
        lambda x, layers, **options: sizes.append(len(layers)) or ops.lora_linear(x, layers, **options),
    )
    results(model)
    assert sizes == 2 * [3, 2]


def test_with_dropout_every_layer_draws_for_itself(tmp_path, monkeypatch):
    model = load(tiny.make_tiny_llama(tmp_path), lora=LoraSpec(r=4, dropout=0.5))
    together = results(model)
    torch.manual_seed(1)
    found = results(model)
    compute_apart(model)
    torch.manual_seed(1)
    for name, expected in results(model).items():
        assert torch.equal(found[name], expected), name
    assert not torch.equal(found["logits"], together["logits"])


def test_another_tensor_is_another_input(tmp_path):
    model = load(tiny.make_tiny_llama(tmp_path))
    layers = next(module.shared_input for module in model.modules() if _shares(module)).layers
    one, other = torch.randn(1, 3, layers[0].in_features), torch.randn(1, 3, layers[0].in_features)
    expected = [SharedInput([layer]).output(layer, x) for layer, x in zip(layers, (one, other, one), strict=True)]
    found = [layer(x) for layer, x in zip(layers, (one, other, one), strict=True)]
    for given, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(given, wanted)
    assert not left_over(model)


def test_what_was_computed_without_gradients_is_not_given_to_training(tmp_path):
    """As after an interruption: the first layer was asked, the others were not."""
    model = load(tiny.make_tiny_llama(tmp_path))
    layers = next(module.shared_input for module in model.modules() if _shares(module)).layers
    x = torch.randn(1, 3, layers[0].in_features)
    with torch.no_grad():
        layers[0](x)
    assert layers[1](x).requires_grad
    layers[-1](x)
    assert not left_over(model)


def test_a_disabled_adapter_and_dora_go_their_own_way(tmp_path):
    model = load(tiny.make_tiny_llama(tmp_path))
    with model.disable_adapter():
        off = model(input_ids=IDS, use_cache=False).logits
    assert not torch.allclose(off, model(input_ids=IDS, use_cache=False).logits)
    dora = load(tiny.make_tiny_llama(tmp_path / "dora"), lora=LoraSpec(r=4, dora=True))
    assert torch.isfinite(results(dora)["logits"]).all()
    assert not left_over(dora)


@pytest.mark.parametrize("quant", [None, QuantSpec(bits=8)])
@pytest.mark.parametrize("recompute", ["none", "layers", "mlp", 1])
def test_a_compiler_sees_layers_in_one_piece_that_share(tmp_path, monkeypatch, recompute, quant):
    """The narrow product with an input is split for those that share it: four times in a layer, not seven times."""
    products = []

    def backend(graph, inputs):
        nodes = [node for part in graph.modules() if isinstance(part, GraphModule) for node in part.graph.nodes]
        products.append(sum(node.op == "call_method" and node.target == "split" for node in nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch.compiler.reset()  # torch counts what other tests have compiled of the same code
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend=backend))
    plain, compiled = (
        load(tiny.make_tiny_llama(tmp_path), recompute=recompute, quant=quant, compile=how) for how in (False, True)
    )
    expected = results(plain)
    for name, found in results(compiled).items():
        torch.testing.assert_close(found, expected[name], msg=name)
    assert not left_over(compiled)
    assert set(products) == ({0, 2} if recompute == "mlp" else {4})  # a layer in pieces, around its MLP
