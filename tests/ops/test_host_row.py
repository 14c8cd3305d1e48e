"""Rows of a matrix that stays in host memory."""

import torch
from torch.nn import functional

from xtuner.ops.host_row import host_copy, host_rows

CPU = torch.device("cpu")


def test_rows_are_those_of_the_matrix():
    matrix = torch.randn(11, 6)
    host = host_copy(matrix, CPU)
    ids = torch.tensor([[3, 3, 10], [0, 1, 2]])
    rows = host_rows(host, ids, CPU)
    assert torch.equal(rows, functional.embedding(ids, matrix))
    matrix.zero_()
    assert torch.equal(host_rows(host, ids, CPU), rows)  # a copy of its own
