"""Chunked cross entropy against the one from full logits."""

import pytest
import torch
from torch import nn

from xtuner.ops.linear_cross_entropy import (
    IGNORE,
    chunk_rows,
    find_learned,
    linear_cross_entropy,
    reference_linear_cross_entropy,
)


def make(rows=23, size=8, vocabulary=31, trained=True):
    torch.manual_seed(0)
    hidden = torch.randn(rows, size, requires_grad=True)
    head = nn.Linear(size, vocabulary, bias=False).requires_grad_(trained)
    labels = torch.randint(vocabulary, (rows,))
    labels[torch.rand(rows) < 0.4] = IGNORE
    return hidden, head, labels


@pytest.mark.parametrize("chunk", [1, 4, 23, 1000])
@pytest.mark.parametrize("trained", [True, False])
def test_equals_the_reference(chunk, trained):
    hidden, head, labels = make(trained=trained)
    wanted = [hidden, *head.parameters()] if trained else [hidden]
    loss = linear_cross_entropy(hidden, head, labels, chunk, parameters=list(head.parameters()))
    expected = reference_linear_cross_entropy(hidden, head, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(loss * 0.37, wanted)
    for grad, other in zip(grads, torch.autograd.grad(expected * 0.37, wanted), strict=True):
        torch.testing.assert_close(grad, other)


def test_known_places_of_the_labels_are_used():
    hidden, head, labels = make()
    whole = linear_cross_entropy(hidden, head, labels, 4)
    places = find_learned(labels)
    assert labels[places].tolist() == [label for label in labels.tolist() if label != IGNORE]
    torch.testing.assert_close(linear_cross_entropy(hidden, head, labels, 4, learned=places), whole)
    half = linear_cross_entropy(hidden, head, labels, 4, learned=places[::2])
    other = linear_cross_entropy(hidden, head, labels, 4, learned=places[1::2])
    assert 0 < half < whole
    torch.testing.assert_close(half + other, whole)


def test_frozen_hidden_states():
    hidden, head, labels = make()
    loss = linear_cross_entropy(hidden.detach(), head, labels, 4, parameters=list(head.parameters()))
    (grad,) = torch.autograd.grad(loss, [head.weight])
    (other,) = torch.autograd.grad(reference_linear_cross_entropy(hidden.detach(), head, labels), [head.weight])
    torch.testing.assert_close(grad, other)


def test_no_labels_is_a_zero_that_can_be_differentiated():
    hidden, head, labels = make()
    loss = linear_cross_entropy(hidden, head, torch.full_like(labels, IGNORE), 4, parameters=list(head.parameters()))
    loss.backward()
    assert loss == 0
    assert hidden.grad.abs().sum() == 0


def test_without_gradients_none_are_computed():
    hidden, head, labels = make()
    calls = []

    def watched(rows):
        calls.append(torch.is_grad_enabled())
        return head(rows)

    with torch.no_grad():
        linear_cross_entropy(hidden, watched, labels, 4, parameters=list(head.parameters()))
    assert calls
    assert not any(calls)


def test_the_head_sees_learned_rows_only_and_never_more_than_a_chunk():
    hidden, head, labels = make()
    sizes = []

    def watched(rows):
        sizes.append(len(rows))
        return head(rows)

    linear_cross_entropy(hidden, watched, labels, 4)
    assert max(sizes) == 4
    assert sum(sizes) == int((labels != IGNORE).sum())


def test_gradients_survive_a_loss_scale_larger_than_fp16():
    hidden, head, labels = make()
    half = hidden.detach().half().requires_grad_()
    loss = linear_cross_entropy(half, lambda rows: head(rows.float()), labels, 4)
    (grad,) = torch.autograd.grad(loss * 2.0**17 * 1e-6, [half])
    assert torch.isfinite(grad).all()


def test_autocast_does_not_lose_gradients_to_its_cache():
    hidden, head, labels = make()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            head(hidden)  # leaves a cast weight without history in autocast's cache
        loss = linear_cross_entropy(hidden, head, labels, 4, parameters=list(head.parameters()))
    loss.backward()
    assert head.weight.grad.abs().sum() > 0


def test_chunks_bound_the_logits():
    assert chunk_rows(92544) * 92544 <= 2**26
    assert chunk_rows(10**9) == 16
