"""The fused LoRA linear against autograd's own operations: outputs, every gradient, and what is kept."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from xtuner.ops.fp8 import Fp8Weight, quantise_rows
from xtuner.ops.lora_linear import (
    AdaptedLayer,
    DenseWeight,
    lora_linear,
    reference_lora_linear,
    traced_lora_linear,
)

WIDTHS = (7, 3, 10)
RANKS = (4, 4, 2)


def make(rows=(3, 5), size=12, widths=WIDTHS, dtype=torch.float32, bias=True):
    """Return inputs and layers that read them."""
    torch.manual_seed(0)
    inputs = torch.randn(*rows, size, dtype=dtype, requires_grad=True)
    layers = [
        AdaptedLayer(
            DenseWeight(torch.randn(width, size, dtype=dtype)),
            torch.randn(width, dtype=dtype) if bias else None,
            torch.randn(rank, size, requires_grad=True),
            torch.randn(width, rank, requires_grad=True),
            scaling=0.7 + width / 10,
        )
        for width, rank in zip(widths, RANKS, strict=False)
    ]
    return inputs, layers


def run(function, inputs, layers, dropout=0.0, dtype=torch.float32):
    """Return the outputs and all gradients."""
    torch.manual_seed(1)
    outputs = function(inputs, layers, dropout=dropout, dtype=dtype)
    pulled = sum((out * torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)).sum() for out in outputs)
    learned = [tensor for layer in layers for tensor in (layer.lora_a, layer.lora_b)]
    return [*outputs, *torch.autograd.grad(pulled, [inputs, *learned])]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(3, 5), (1,), (2, 1, 4)])
@pytest.mark.parametrize("function", [lora_linear, traced_lora_linear])
def test_equals_the_reference(function, count, bias, rows):
    inputs, layers = make(rows, widths=WIDTHS[:count], bias=bias)
    for found, expected in zip(run(function, inputs, layers), run(reference_lora_linear, inputs, layers), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("function", [lora_linear, traced_lora_linear])
def test_dropout_draws_what_the_reference_draws(function):
    inputs, layers = make(rows=(20,), widths=WIDTHS[:1])
    found, expected = (run(each, inputs, layers, dropout=0.3) for each in (function, reference_lora_linear))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(found[0], run(function, inputs, layers)[0])


@pytest.mark.parametrize("function", [lora_linear, traced_lora_linear])
def test_half_precision_keeps_gradients_of_the_adapter_in_fp32(function):
    inputs, layers = make(dtype=torch.bfloat16)
    found, expected = (run(each, inputs, layers, dtype=torch.bfloat16) for each in (function, reference_lora_linear))
    assert [tensor.dtype for tensor in found] == 4 * [torch.bfloat16] + 6 * [torch.float32]
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other.float()).norm() < 0.03 * other.float().norm()


def test_the_sum_of_both_products_is_rounded_once():
    inputs, layers = make(rows=(64,), size=96, widths=(80,), dtype=torch.bfloat16, bias=False)
    exact = run(reference_lora_linear, inputs.double().detach().requires_grad_(), layers, dtype=torch.float64)[0]
    once, twice = (
        (run(function, inputs, layers, dtype=torch.bfloat16)[0] - exact).norm()
        for function in (traced_lora_linear, reference_lora_linear)
    )
    assert once < 0.9 * twice


def test_compiled_code_takes_the_same_way():
    inputs, layers = make()
    found = run(torch.compile(lora_linear, backend="aot_eager", fullgraph=True), inputs, layers)
    for one, other in zip(found, run(reference_lora_linear, inputs, layers), strict=True):
        torch.testing.assert_close(one, other)


def test_fp8_adds_what_its_products_cannot_begin_with():
    rows, inner, factor = torch.randn(5, 32), torch.randn(5, 4), torch.randn(16, 4)
    weight = Fp8Weight(*quantise_rows(torch.randn(16, 32)))
    torch.testing.assert_close(weight.adapted(rows, inner, factor), weight.multiply(rows) + inner @ factor.t())


def test_input_without_gradient():
    inputs, layers = make()
    outputs = lora_linear(inputs.detach(), layers, dropout=0.0, dtype=torch.float32)
    sum(out.sum() for out in outputs).backward()
    assert all(layer.lora_a.grad is not None for layer in layers)
    assert inputs.grad is None


def test_an_output_that_nothing_hangs_on():
    inputs, layers = make()
    first = lora_linear(inputs, layers, dropout=0.0, dtype=torch.float32)[0]
    expected = reference_lora_linear(inputs, layers[:1], dropout=0.0, dtype=torch.float32)[0]
    for one, other in zip(
        torch.autograd.grad(first.sum(), [inputs, layers[0].lora_a]),
        torch.autograd.grad(expected.sum(), [inputs, layers[0].lora_a]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_keeps_the_input_once_and_never_a_weight():
    fetched, kept = [], []

    class Watched(DenseWeight):
        def multiply(self, rows):
            fetched.append("forward")
            return DenseWeight(self.weight.clone()).multiply(rows)

        def pull_back(self, grads):
            fetched.append("backward")
            return DenseWeight(self.weight.clone()).pull_back(grads)

    inputs, layers = make(rows=(50,), size=64, widths=(128, 96))
    layers = [replace(layer, weight=Watched(layer.weight.weight)) for layer in layers]
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        outputs = lora_linear(inputs, layers, dropout=0.0, dtype=torch.float32)
    learned = [tensor for layer in layers for tensor in (layer.lora_a, layer.lora_b)]
    own = [tensor for tensor in kept if not any(tensor is one for one in learned)]
    assert sum(tensor.numel() for tensor in own) == 50 * 64 + 50 * (4 + 4)
    assert fetched == ["forward"] * 2
    sum(out.sum() for out in outputs).backward()
    assert fetched == ["forward"] * 2 + ["backward"] * 2
