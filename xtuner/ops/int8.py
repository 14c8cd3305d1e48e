"""Products with a frozen weight in 8-bit integers, as bitsandbytes stores and multiplies it (LLM.int8(),
https://arxiv.org/abs/2208.07339).

Forward, rows are quantised too, but for columns that hold outliers; backward, the weight is taken in full. A CPU has no
such products and takes it in full both ways. All three are what bitsandbytes does.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Int8Weight:
    """A weight (O, I) in int8; 127 in row i stands for `scales[i]`, (O,) fp32."""

    weight: Tensor
    scales: Tensor
    threshold: float
    """Columns of rows that hold larger numbers are multiplied in full; 0: none are."""

    def multiply(self, rows: Tensor) -> Tensor:
        """x W^T."""
        return _product(rows, self.weight, self.scales, self.threshold)

    def pull_back(self, grads: Tensor) -> Tensor:
        """g W."""
        return grads @ in_full(self.weight, self.scales, grads.dtype)

    def linear(self, rows: Tensor) -> Tensor:
        """x W^T with a gradient, in one operation to compilers."""
        output: Tensor = _int8_product(rows, self.weight, self.scales, self.threshold)
        return output

    def adapted(self, rows: Tensor, inner: Tensor, factor: Tensor) -> Tensor:
        """x W^T + inner factor^T; integer products begin with nothing, so it is added."""
        return self.linear(rows) + functional.linear(inner, factor)


def in_full(weight: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight (O, I) that int8 numbers stand for."""
    return weight.to(dtype, copy=True).mul_(scales[:, None] * (1.0 / 127.0))


def _product(rows: Tensor, weight: Tensor, scales: Tensor, threshold: float) -> Tensor:
    if not rows.is_cuda:
        return functional.linear(rows, in_full(weight, scales, rows.dtype))
    from bitsandbytes.functional import int8_vectorwise_quant

    few, few_scales, outliers = int8_vectorwise_quant(rows.to(torch.float16), threshold=threshold)
    operations = torch.ops.bitsandbytes
    output: Tensor
    if threshold > 0:
        output, _ = operations.int8_mixed_scaled_mm(rows, few, weight, few_scales, scales, outliers, None)
    else:
        output = operations.int8_scaled_mm.default(few, weight, few_scales, scales, bias=None, dtype=rows.dtype)
    return output


@torch.library.custom_op("xtuner::int8_product", mutates_args=())
def _int8_product(rows: Tensor, weight: Tensor, scales: Tensor, threshold: float) -> Tensor:
    """x W^T: how many columns hold outliers is not known before, which no compiler could follow."""
    return _product(rows, weight, scales, threshold)


@_int8_product.register_fake
def _(rows: Tensor, weight: Tensor, scales: Tensor, threshold: float) -> Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])


def _pull_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    weight, scales = ctx.saved_tensors
    return grad @ in_full(weight, scales, grad.dtype), None, None, None


_int8_product.register_autograd(_pull_back, setup_context=_remember)
