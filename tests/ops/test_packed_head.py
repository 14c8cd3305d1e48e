"""A 4-bit head gives the loss and the gradients of the head it stands for, however it is cut into slabs."""

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from truth_4bit import numbers

from xtuner.ops.linear_cross_entropy import IGNORE, linear_cross_entropy, reference_linear_cross_entropy
from xtuner.ops.nf4 import in_full
from xtuner.ops.packed4bit import Packed4bit
from xtuner.ops.packed_head import PackedHead

ONE, SOME, LEAST = 2**26, 96 * 300, 1


def packed(vocabulary, width, *, kind="nf4", double=True):
    """A head as it is stored, and in full."""
    torch.manual_seed(0)
    data, state = quantize_4bit(torch.randn(vocabulary, width) * 0.2, quant_type=kind, compress_statistics=double)
    return Packed4bit.of(data, state), numbers(data, state)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(("vocabulary", "width"), [(1000, 96), (515, 256), (704, 34)])
def test_rows_of_a_4bit_weight(vocabulary, width, kind, double):
    weight, full = packed(vocabulary, width, kind=kind, double=double)
    assert (weight.rows_apart * width) % (64 * (256 if double else 1)) == 0
    for start in range(0, vocabulary, weight.rows_apart):
        part = weight.rows(start, start + weight.rows_apart)
        assert torch.equal(in_full(part, torch.float32), full[start : start + weight.rows_apart]), start
    if weight.rows_apart > 1:
        with pytest.raises(AssertionError, match="cut"):
            weight.rows(1, 3)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("slab", [ONE, SOME, LEAST])
def test_loss_and_gradient_are_those_of_the_head_in_full(slab, double):
    weight, full = packed(1000, 96, double=double)
    bias = torch.randn(1000)
    hidden = torch.randn(50, 96, requires_grad=True)
    labels = torch.randint(1000, (50,))
    labels[::4] = IGNORE
    head = PackedHead(weight, bias, slab=slab)
    # with quantised scales it can be cut at every 512th row, else at every second
    assert len(head.starts) == {ONE: 1, SOME: 2 if double else 4, LEAST: 2 if double else 500}[slab]
    loss = linear_cross_entropy(hidden, head, labels, 16)
    expected = reference_linear_cross_entropy(hidden, lambda rows: rows @ full.t() + bias, labels)
    torch.testing.assert_close(loss, expected)
    [grad], [other] = torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, hidden)
    torch.testing.assert_close(grad, other)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, head, labels, 16), expected)


def test_a_head_of_one_slab_is_dequantised_once():
    head = PackedHead(packed(1000, 96)[0])
    rows = torch.randn(5, 96, requires_grad=True)
    head(rows)
    first = head._slab
    assert first is not None
    head(rows).sum().backward()
    assert head._slab is first


def test_only_a_slab_is_in_full():
    head = PackedHead(packed(1000, 64, double=False)[0], slab=64 * 100)
    head(torch.randn(5, 64))
    assert head._slab.shape == (100, 64)


def test_the_format_of_the_product():
    weight, full = packed(300, 64)
    rows = torch.randn(5, 64)
    assert PackedHead(weight)(rows).dtype == torch.float32
    half = PackedHead(weight, dtype=torch.bfloat16)(rows)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), rows @ full.t(), atol=0.1, rtol=0.05)
    with torch.autocast("cpu", torch.float16):
        assert PackedHead(weight, dtype=torch.bfloat16)(rows).dtype == torch.float16
