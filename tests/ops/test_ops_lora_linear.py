"""The fused LoRA linear against autograd's own operations: output, every gradient, and what is kept."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from xtuner.ops.lora_linear import DenseWeight, lora_linear, reference_lora_linear


def make(rows=(3, 5), size=12, out=7, rank=4, dtype=torch.float32):
    torch.manual_seed(0)
    inputs = torch.randn(*rows, size, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(out, size, dtype=dtype), torch.randn(out, dtype=dtype)
    lora_a = torch.randn(rank, size, requires_grad=True)
    lora_b = torch.randn(out, rank, requires_grad=True)
    return inputs, weight, bias, lora_a, lora_b


def run(function, inputs, weight, bias, lora_a, lora_b, dropout=0.0, dtype=torch.float32):
    torch.manual_seed(1)
    out = function(inputs, DenseWeight(weight), bias, lora_a, lora_b, scaling=0.7, dropout=dropout, dtype=dtype)
    pull = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return out, torch.autograd.grad((out * pull).sum(), [inputs, lora_a, lora_b])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [(3, 5), (1,), (2, 1, 4)])
def test_equals_the_reference(dropout, with_bias, rows):
    inputs, weight, bias, lora_a, lora_b = make(rows)
    parts = (inputs, weight, bias if with_bias else None, lora_a, lora_b)
    out, grads = run(lora_linear, *parts, dropout=dropout)
    expected, reference = run(reference_lora_linear, *parts, dropout=dropout)
    torch.testing.assert_close(out, expected)
    for grad, other in zip(grads, reference, strict=True):
        torch.testing.assert_close(grad, other)


def test_half_precision_keeps_gradients_of_the_adapter_in_fp32():
    parts = make(dtype=torch.bfloat16)
    out, grads = run(lora_linear, *parts, dtype=torch.bfloat16)
    expected, reference = run(reference_lora_linear, *parts, dtype=torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(out, expected, atol=0.1, rtol=0.05)
    for grad, other in zip(grads, reference, strict=True):
        assert (grad - other).norm() < 0.03 * other.norm()


def test_input_without_gradient():
    inputs, weight, bias, lora_a, lora_b = make()
    out = lora_linear(
        inputs.detach(), DenseWeight(weight), bias, lora_a, lora_b, scaling=1.0, dropout=0.0, dtype=torch.float32
    )
    out.sum().backward()
    assert lora_a.grad is not None
    assert inputs.grad is None


def test_keeps_the_input_once_and_never_the_weight():
    inputs, weight, bias, lora_a, lora_b = make(rows=(50,), size=64, out=128, rank=2)
    fetched, kept = [], []

    class Watched(DenseWeight):
        def multiply(self, rows):
            fetched.append("forward")
            return DenseWeight(self.weight.clone()).multiply(rows)

        def pull_back(self, grads):
            fetched.append("backward")
            return DenseWeight(self.weight.clone()).pull_back(grads)

    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out = lora_linear(inputs, Watched(weight), bias, lora_a, lora_b, scaling=1.0, dropout=0.0, dtype=torch.float32)
    own = [tensor for tensor in kept if tensor is not lora_a and tensor is not lora_b]
    assert sum(tensor.numel() for tensor in own) == 50 * 64 + 50 * 2
    assert fetched == ["forward"]
    out.sum().backward()
    assert fetched == ["forward", "backward"]
