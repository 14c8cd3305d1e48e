"""Packed attention against the formula with an explicit mask."""

import pytest
import torch

from xtuner.ops.attention import causal_attention, causal_mask, eager_attention, packed_attention
from xtuner.ops.packing import Packing

SCALE = 0.3


def states(length, heads=4, groups=2, size=8, value_size=None, keys=None, grad=False):
    torch.manual_seed(0)
    shapes = [(heads, length, size), (groups, keys or length, size), (groups, keys or length, value_size or size)]
    return [torch.randn(1, *shape, requires_grad=grad) for shape in shapes]


def formula(query, key, value, allowed):
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))[None, None]
    return eager_attention(torch.nn.Module(), query, key, value, bias, SCALE)[0].transpose(1, 2)


def block_mask(lengths, window=None):
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    total = sum(lengths)
    return (segment[:, None] == segment) & causal_mask(total, total, window, segment.device)


@pytest.mark.parametrize("lengths", [[1], [7], [1, 1], [5, 1, 9], [3] * 6])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("value_size", [8, 4])
def test_segments_see_themselves_only(lengths, window, value_size):
    tensors = states(sum(lengths), value_size=value_size, grad=True)
    packing = Packing.from_lengths(lengths)
    out = packed_attention(*tensors, packing.cu_seqlens, packing.max_seqlen, scale=SCALE, window=window)
    expected = formula(*tensors, block_mask(lengths, window))
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), tensors)
    for grad, reference in zip(grads, torch.autograd.grad((expected * weight).sum(), tensors), strict=True):
        torch.testing.assert_close(grad, reference)


@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (4, 9), (9, 9)])
@pytest.mark.parametrize("window", [None, 3])
def test_queries_stand_at_the_end_of_the_keys(queries, keys, window):
    tensors = states(queries, keys=keys)
    out = causal_attention(*tensors, scale=SCALE, window=window)
    place = torch.arange(keys - queries, keys)[:, None]
    allowed = (torch.arange(keys) <= place) & (torch.arange(keys) > place - (window or keys))
    torch.testing.assert_close(out, formula(*tensors, allowed))


def test_several_rows_are_not_a_pack():
    packing = Packing.from_lengths([4])
    two = [state.expand(2, -1, -1, -1) for state in states(4)]
    with pytest.raises(AssertionError):
        packed_attention(*two, packing.cu_seqlens, packing.max_seqlen, scale=SCALE)
