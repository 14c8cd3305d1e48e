"""Experts: the grouped computation equals token by token, and balance is what the paper's formula says."""

import torch
from torch import nn

from xtuner.ops.expert import balance, reference_experts, run_experts


def test_grouped_equals_token_by_token():
    torch.manual_seed(0)
    experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(7))
    hidden = torch.randn(23, 8, requires_grad=True)
    weights = torch.rand(23, 3, requires_grad=True)
    chosen = torch.stack([torch.randperm(5)[:3] for _ in range(23)])  # experts 5 and 6 are never asked
    gradients = []
    for function in (run_experts, reference_experts):
        for expert in experts:
            expert.zero_grad()
        made = function(experts, hidden, weights, chosen)
        parameters = [parameter for expert in experts[:5] for parameter in expert.parameters()]
        gradients.append((made, *torch.autograd.grad(made.square().sum(), [hidden, weights, *parameters])))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_experts_that_nobody_asks_are_not_called():
    calls = []

    def expert(number):
        return lambda rows: (calls.append((number, len(rows))), rows * number)[1]

    experts = [expert(number) for number in range(5)]
    hidden, chosen = torch.ones(4, 2), torch.tensor([[3, 1], [1, 3], [3, 4], [4, 3]])
    made = run_experts(experts, hidden, torch.ones(4, 2), chosen)
    assert calls == [(1, 2), (3, 4), (4, 2)]
    assert made[:, 0].tolist() == [4, 4, 7, 7]


def test_balance_by_hand():
    scores = torch.tensor([[[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]]], requires_grad=True)
    chosen = torch.tensor([[[0, 1], [0, 2]]])
    found = balance(scores, chosen)
    assert torch.allclose(found, 3 * torch.tensor([0.5 * 0.6 + 0.25 * 0.3 + 0.25 * 0.1]))
    found.sum().backward()
    assert torch.allclose(scores.grad[0, 0], 3 * torch.tensor([0.5, 0.25, 0.25]) / 2)
    even = torch.full((1, 3, 3), 1 / 3)
    assert torch.allclose(balance(even, torch.tensor([[[0], [1], [2]]])), torch.ones(1))


def test_balance_of_segments_is_that_of_each_alone():
    torch.manual_seed(0)
    lengths = [4, 1, 7]
    scores = torch.rand(1, 12, 5).softmax(-1)
    chosen = scores.topk(2).indices
    borders = torch.tensor([0, 4, 5, 12], dtype=torch.int32)
    alone = [balance(s, c) for s, c in zip(scores.split(lengths, 1), chosen.split(lengths, 1), strict=True)]
    torch.testing.assert_close(balance(scores, chosen, borders), torch.cat(alone))
