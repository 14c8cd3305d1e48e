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


@pytest.mark.parametrize("lengths", [[3] * 6, [9, 9], [12]])
@pytest.mark.parametrize("window", [None, 4])
def test_segments_of_one_length_are_a_batch(lengths, window, monkeypatch):
    """They are where their length is a multiple of 128; the borders are not looked at then."""
    monkeypatch.setattr("xtuner.ops.attention.LEAST_CUDNN", 3)
    tensors = states(sum(lengths))
    borders = Packing.from_lengths(lengths).cu_seqlens.to("meta")
    out = packed_attention(*tensors, borders, lengths[0], scale=SCALE, window=window)
    torch.testing.assert_close(out, formula(*tensors, block_mask(lengths, window)))


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_the_borders_of_one_segment_are_not_looked_at(softcap):
    """A card would have to be waited for."""
    tensors = states(7)
    borders = Packing.from_lengths([7]).cu_seqlens.to("meta")
    out = packed_attention(*tensors, borders, 7, scale=SCALE, softcap=softcap)
    torch.testing.assert_close(out, causal_attention(*tensors, scale=SCALE, softcap=softcap))


def by_hand(query, key, value, allowed, softcap, sinks):
    """Query by query and key by key, as the papers write it."""
    heads, queries, groups = query.shape[1], query.shape[2], query.shape[1] // key.shape[1]
    out = torch.zeros(1, heads, queries, value.shape[3])
    for head in range(heads):
        for place in range(queries):
            scores = SCALE * key[0, head // groups] @ query[0, head, place]
            scores = torch.tanh(scores / softcap) * softcap if softcap else scores
            weights = scores.exp() * allowed[place]
            rest = sinks[head].exp() if sinks is not None else 0
            out[0, head, place] = weights @ value[0, head // groups] / (weights.sum() + rest)
    return out


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.3, -1.0, 2.0, 0.0])])
@pytest.mark.parametrize("window", [None, 3])
def test_soft_caps_and_sinks(softcap, sinks, window):
    lengths = [5, 1, 9]
    tensors, packing = states(15, value_size=4), Packing.from_lengths(lengths)
    out = packed_attention(
        *tensors, packing.cu_seqlens, packing.max_seqlen, scale=SCALE, window=window, softcap=softcap, sinks=sinks
    )
    torch.testing.assert_close(out, by_hand(*tensors, block_mask(lengths, window), softcap, sinks))


def test_soft_caps_and_sinks_know_dropout():
    torch.manual_seed(0)
    tensors = states(6)
    options = {"scale": SCALE, "softcap": 1.0, "sinks": torch.zeros(4)}
    plain = causal_attention(*tensors, **options)
    dropped = torch.stack([causal_attention(*tensors, dropout=0.5, **options) for _ in range(2000)])
    assert (dropped.std(0) > 0).all()
    torch.testing.assert_close(dropped.mean(0), plain, atol=0.15, rtol=0)


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
