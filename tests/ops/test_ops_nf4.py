"""Products with a 4-bit weight: equal to what bitsandbytes stores, multiplied."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from truth_4bit import numbers

from xtuner.ops.nf4 import Weight4bit, dequantise
from xtuner.ops.packed4bit import Packed4bit


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(48, 64), (8, 96), (130, 256)])
def test_dequantises_to_the_same_bits(double, kind, shape):
    torch.manual_seed(0)
    packed, state = quantize_4bit(torch.randn(shape), quant_type=kind, compress_statistics=double)
    weight = Packed4bit.of(packed, state)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(dequantise(weight, dtype), numbers(packed, state, dtype)), dtype


@pytest.mark.parametrize("double", [True, False])
def test_an_odd_count_of_numbers(double):
    """The last byte holds one more."""
    torch.manual_seed(0)
    values = torch.randn(3, 21)
    longer = torch.cat([values.view(1, -1), torch.zeros(1, 1)], dim=1)
    packed = (quantize_4bit(each, quant_type="nf4", compress_statistics=double) for each in (values, longer))
    odd, even = (dequantise(Packed4bit.of(*each), torch.float32) for each in packed)
    assert odd.shape == (3, 21)
    assert torch.equal(odd.flatten(), even.flatten()[:-1])


def test_products_both_ways():
    torch.manual_seed(0)
    packed, state = quantize_4bit(torch.randn(48, 64), quant_type="nf4", compress_statistics=True)
    weight, full = Weight4bit(Packed4bit.of(packed, state)), dequantize_4bit(packed, state)
    rows, grads = torch.randn(5, 64, requires_grad=True), torch.randn(5, 48)
    torch.testing.assert_close(weight.multiply(rows.detach()), rows.detach() @ full.t())
    torch.testing.assert_close(weight.pull_back(grads), grads @ full)
    for linear in (weight.linear, torch.compile(weight.linear, backend="aot_eager", fullgraph=True)):
        (grad,) = torch.autograd.grad(linear(rows), rows, grads)
        torch.testing.assert_close(grad, grads @ full)
