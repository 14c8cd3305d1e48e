"""Products with a frozen FP8 weight: how far they may be from the weight they stand for."""

from dataclasses import replace

import torch

from xtuner.ops.fp8 import Fp8Weight, quantise_rows


def test_rows_come_back_within_the_format():
    torch.manual_seed(0)
    rows = torch.randn(9, 64) * torch.logspace(-6, 6, 9)[:, None]
    few, scales = quantise_rows(rows)
    assert few.dtype == torch.float8_e4m3fn
    assert ((few.float() * scales - rows).abs() <= rows.abs().amax(1, keepdim=True) / 448 * 16 + 1e-20).all()
    assert ((few.float() * scales - rows).norm(dim=1) < 0.04 * rows.norm(dim=1)).all()


def test_a_row_of_zeros_stays_zeros():
    few, scales = quantise_rows(torch.zeros(2, 8))
    assert torch.equal(few.float() * scales, torch.zeros(2, 8))


def test_products_both_ways():
    torch.manual_seed(0)
    weight = torch.randn(48, 64) * torch.logspace(-2, 2, 48)[:, None]
    frozen = Fp8Weight(*quantise_rows(weight))
    rows, grads = torch.randn(5, 64, requires_grad=True), torch.randn(5, 48)
    expected = rows.detach() @ weight.t()
    assert (frozen.multiply(rows.detach()) - expected).norm() < 0.05 * expected.norm()
    assert (frozen.pull_back(grads) - grads @ weight).norm() < 0.05 * (grads @ weight).norm()
    out = frozen.linear(rows)
    assert torch.equal(out, frozen.multiply(rows.detach()))
    assert torch.equal(torch.autograd.grad(out, rows, grads)[0], frozen.pull_back(grads))


def test_a_transpose_that_is_held_is_the_one_that_would_be_made():
    torch.manual_seed(0)
    weight, scales = quantise_rows(torch.randn(48, 64))
    held = Fp8Weight(weight, scales, weight.t().contiguous())
    grads = torch.randn(5, 48)
    assert torch.equal(held.pull_back(grads), Fp8Weight(weight, scales).pull_back(grads))
    rows = torch.randn(5, 64, requires_grad=True)
    other = replace(held, transposed=torch.zeros_like(weight.t()))  # it is what the gradient is made of
    assert not torch.autograd.grad(other.linear(rows), rows, grads)[0].any()
