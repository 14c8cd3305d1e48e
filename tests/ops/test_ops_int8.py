"""INT8 weights as bitsandbytes stores them: products both ways, alone and under an adapter, compiled or not."""

import bitsandbytes
import pytest
import torch
from torch.nn import functional

from xtuner.ops.int8 import Int8Weight, in_full
from xtuner.ops.lora_linear import AdaptedLayer, lora_linear, reference_lora_linear


def make(rows=48, columns=64):
    """Return a weight, and the layer of bitsandbytes that holds it."""
    layer = bitsandbytes.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False, threshold=6.0)
    torch.manual_seed(0)
    layer.weight = bitsandbytes.nn.Int8Params(torch.randn(rows, columns), has_fp16_weights=False, requires_grad=False)
    layer = layer.to("cpu")
    layer.init_8bit_state()
    return Int8Weight(layer.state.CB, layer.state.SCB, layer.state.threshold), layer.train()


def test_products_are_those_of_bitsandbytes():
    weight, layer = make()
    rows, grads = torch.randn(5, 64, requires_grad=True), torch.randn(5, 48)
    theirs = layer(rows)
    pulled = torch.autograd.grad(theirs, rows, grads)[0]
    assert torch.equal(weight.multiply(rows.detach()), theirs)
    assert torch.equal(weight.pull_back(grads), pulled)
    ours = weight.linear(rows)
    assert torch.equal(ours, theirs)
    assert torch.equal(torch.autograd.grad(ours, rows, grads)[0], pulled)


def test_numbers_are_near_those_that_were_stored():
    weight, _ = make()
    torch.manual_seed(0)
    stored = torch.randn(48, 64)
    assert (in_full(weight.weight, weight.scales, torch.float32) - stored).abs().max() < stored.abs().max() / 127


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_adapters_it_is_the_reference(dtype, compiled):
    weight, _ = make()
    layers = [
        AdaptedLayer(weight, torch.randn(48), torch.randn(r, 64, requires_grad=True), torch.zeros(48, r), 0.5)
        for r in (4, 2)
    ]
    for layer in layers:
        layer.lora_b.normal_().requires_grad_()
    inputs = torch.randn(2, 3, 64, requires_grad=True)
    function = torch.compile(lora_linear, backend="aot_eager", fullgraph=True) if compiled else lora_linear
    results = []
    for each in (function, reference_lora_linear):
        out = sum(functional.silu(part).sum() for part in each(inputs, layers, dropout=0.0, dtype=dtype))
        learned = [inputs, *(tensor for layer in layers for tensor in (layer.lora_a, layer.lora_b))]
        results.append([out, *torch.autograd.grad(out, learned)])
    near = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.2}
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **near)
