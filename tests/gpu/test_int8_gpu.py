"""INT8 layers on a card: the products of bitsandbytes, with outliers and without, alone and compiled.

Type: python -m pytest -o addopts= tests/gpu/test_int8_gpu.py
"""

import bitsandbytes
import pytest
import torch

from xtuner.ops.int8 import Int8Weight
from xtuner.ops.lora_linear import AdaptedLayer, lora_linear, reference_lora_linear

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")


def make(threshold):
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear8bitLt(1024, 768, bias=False, has_fp16_weights=False, threshold=threshold)
    layer = layer.to("cuda")
    layer.init_8bit_state()
    return Int8Weight(layer.state.CB, layer.state.SCB, threshold), layer.train()


def draw_rows(outliers, dtype):
    rows = torch.randn(512, 1024, device="cuda", dtype=dtype)
    if outliers:
        rows[3, 17], rows[200, 500] = 20.0, -40.0
    return rows.requires_grad_()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("threshold", "outliers"), [(6.0, True), (6.0, False), (0.0, True)])
def test_products_are_those_of_bitsandbytes(dtype, threshold, outliers):
    weight, layer = make(threshold)
    rows = draw_rows(outliers, dtype)
    grads = torch.randn(512, 768, device="cuda", dtype=dtype)
    theirs, ours = layer(rows), weight.linear(rows)
    assert torch.equal(ours, theirs)
    assert torch.equal(weight.multiply(rows.detach()), theirs)
    expected = torch.autograd.grad(theirs, rows, grads)[0]
    assert torch.equal(torch.autograd.grad(ours, rows, grads)[0], expected)
    assert torch.equal(weight.pull_back(grads), expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_under_adapters_it_is_the_reference(compiled):
    weight, _ = make(6.0)
    learned = [torch.randn(size, device="cuda").div_(32).requires_grad_() for size in ((16, 1024), (768, 16)) * 2]
    layers = [AdaptedLayer(weight, None, a, b, 0.5) for a, b in (learned[:2], learned[2:])]
    rows = draw_rows(True, torch.bfloat16)
    function = torch.compile(lora_linear, fullgraph=True) if compiled else lora_linear
    results = []
    for each in (function, reference_lora_linear):
        out = sum(part.float().square().sum() for part in each(rows, layers, dropout=0.0, dtype=torch.bfloat16))
        results.append([out, *torch.autograd.grad(out, [rows, *learned])])
    for one, other in zip(*results, strict=True):
        assert (one.float() - other.float()).norm() < 0.02 * other.float().norm()
