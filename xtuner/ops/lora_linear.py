"""Frozen linear layers with low-rank branches (https://arxiv.org/abs/2106.09685) over one input, as one function.

It keeps the input once, in the dtype it is computed in, and never forms a gradient for a frozen weight. A weight
stays in whatever form it is stored in: its two products are asked for when they are needed, so a 4-bit weight is never
held in full between the forward and the backward pass (https://arxiv.org/abs/2305.14314). Layers that read the same
input (query, key and value; gate and up) share the products of their narrow matrices with it, which take as long for
one layer as for three: they wait for memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


class FrozenWeight(Protocol):
    """A weight W (O, I) that is not trained, in any form; products come in the dtype of what is given."""

    def multiply(self, rows: Tensor) -> Tensor:
        """(N, I) -> x W^T (N, O). Autograd sees nothing of it."""
        ...

    def pull_back(self, grads: Tensor) -> Tensor:
        """The gradient of `multiply`: (N, O) -> g W (N, I)."""
        ...

    def linear(self, rows: Tensor) -> Tensor:
        """`multiply` with a gradient for `rows`, in operations that compilers can look into."""
        ...

    def adapted(self, rows: Tensor, inner: Tensor, factor: Tensor) -> Tensor:
        """x W^T + inner (N, R) factor^T (R, O) with gradients for all three, for compilers too; rounded once where
        products of this form can be added to something."""
        ...


@dataclass(frozen=True)
class DenseWeight:
    """A weight that is stored as it is."""

    weight: Tensor

    def multiply(self, rows: Tensor) -> Tensor:
        """x W^T."""
        return functional.linear(rows, self.weight.to(rows.dtype))

    def pull_back(self, grads: Tensor) -> Tensor:
        """g W."""
        return grads @ self.weight.to(grads.dtype)

    def linear(self, rows: Tensor) -> Tensor:
        """Autograd forms no gradient for a weight that wants none."""
        return self.multiply(rows)

    def adapted(self, rows: Tensor, inner: Tensor, factor: Tensor) -> Tensor:
        """x W^T + inner factor^T, rounded once."""
        return _adapted_product(rows, inner, factor, self.weight.to(rows.dtype))


@dataclass(frozen=True)
class AdaptedLayer:
    """x W^T + b + scaling * x A^T B^T: a frozen layer and what is learned beside it."""

    weight: FrozenWeight
    """(O, I)."""
    bias: Tensor | None
    """(O,), frozen."""
    lora_a: Tensor
    """(R, I)."""
    lora_b: Tensor
    """(O, R)."""
    scaling: float


def lora_linear(
    inputs: Tensor, layers: Sequence[AdaptedLayer], *, dropout: float, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Return what each of `layers` makes of `inputs` (..., I), computed in `dtype`: (..., O) each.

    `dropout` is the share of inputs that the low-rank branch does not see, drawn from torch's generator of the device;
    with it a layer is computed alone, since each draws for itself.
    """
    assert dropout == 0 or len(layers) == 1
    if torch.compiler.is_compiling():  # a compiler fuses the sums with what follows, if it sees them
        return traced_lora_linear(inputs, layers, dropout=dropout, dtype=dtype)
    learned = [tensor for layer in layers for tensor in (layer.lora_a, layer.lora_b)]
    outputs: tuple[Tensor, ...] = _LoraLinear.apply(inputs, tuple(layers), dropout, dtype, *learned)
    return outputs


def reference_lora_linear(
    inputs: Tensor, layers: Sequence[AdaptedLayer], *, dropout: float, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The same layer by layer with autograd's own operations; what the others are tested against."""
    inputs = inputs.to(dtype)
    seen = functional.dropout(inputs, dropout)
    outputs = []
    for layer in layers:
        base = layer.weight.linear(inputs.reshape(-1, inputs.shape[-1])).view(*inputs.shape[:-1], -1)
        if layer.bias is not None:
            base = base + layer.bias.to(dtype)
        inner = functional.linear(seen, layer.lora_a.to(dtype))
        outputs.append(base + functional.linear(inner, layer.lora_b.to(dtype)) * layer.scaling)
    return tuple(outputs)


def traced_lora_linear(
    inputs: Tensor, layers: Sequence[AdaptedLayer], *, dropout: float, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The same in the order that compiled code does best: the wide product of a layer is added to the low-rank one as
    it is made, where otherwise both would be written and read again: a quarter of all bytes that a wide layer moves."""
    rows = inputs.to(dtype).reshape(-1, inputs.shape[-1])
    lora_a = torch.cat([layer.lora_a for layer in layers]).to(dtype)
    inner = functional.linear(functional.dropout(rows, dropout), lora_a)
    outputs = []
    for layer, part in zip(layers, inner.split([len(layer.lora_a) for layer in layers], dim=1), strict=True):
        output = layer.weight.adapted(rows, part, (layer.lora_b * layer.scaling).to(dtype))
        if layer.bias is not None:
            output = output + layer.bias.to(dtype)
        outputs.append(output.view(*inputs.shape[:-1], -1))
    return tuple(outputs)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        layers: tuple[AdaptedLayer, ...],
        dropout: float,
        dtype: torch.dtype,
        *learned: Tensor,
    ) -> tuple[Tensor, ...]:
        rows = inputs.reshape(-1, inputs.shape[-1]).to(dtype)
        seen, mask = torch.native_dropout(rows, dropout, True) if dropout > 0 else (rows, None)
        inner = seen @ _stack(learned[::2], dtype).t()
        outputs = []
        for layer, lora_b, part in zip(layers, learned[1::2], _split(inner, learned), strict=True):
            output = layer.weight.multiply(rows)
            output.addmm_(part, lora_b.to(dtype).t(), alpha=layer.scaling)
            if layer.bias is not None:
                output += layer.bias.to(dtype)
            outputs.append(output.view(*inputs.shape[:-1], -1))
        ctx.save_for_backward(rows, mask, inner, *learned)
        ctx.layers, ctx.dropout, ctx.dtype = [(layer.weight, layer.scaling) for layer in layers], dropout, dtype
        ctx.input_shape, ctx.input_dtype = inputs.shape, inputs.dtype
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows, mask, inner, *learned = ctx.saved_tensors
        grads = [grad.reshape(-1, grad.shape[-1]).to(ctx.dtype) for grad in grad_outputs]
        keep = 1.0 / (1.0 - ctx.dropout)
        pulled = [
            (grad @ lora_b.to(ctx.dtype)).mul_(scaling)
            for grad, lora_b, (_, scaling) in zip(grads, learned[1::2], ctx.layers, strict=True)
        ]
        grad_inner = pulled[0] if len(pulled) == 1 else torch.cat(pulled, dim=1)
        wanted: list[Tensor | None] = [None] * len(learned)
        if any(ctx.needs_input_grad[4::2]):
            seen = rows if mask is None else rows * mask * keep
            grads_a = _split(grad_inner.t() @ seen, learned, dim=0)
            wanted[::2] = [part.to(lora_a.dtype) for part, lora_a in zip(grads_a, learned[::2], strict=True)]
        if any(ctx.needs_input_grad[5::2]):
            wanted[1::2] = [
                (grad.t() @ part).mul_(scaling).to(lora_b.dtype)
                for grad, part, lora_b, (_, scaling) in zip(
                    grads, _split(inner, learned), learned[1::2], ctx.layers, strict=True
                )
            ]
        grad_inputs = None
        if ctx.needs_input_grad[0]:
            grad_rows = ctx.layers[0][0].pull_back(grads[0])
            for grad, (weight, _) in zip(grads[1:], ctx.layers[1:], strict=True):
                grad_rows += weight.pull_back(grad)
            lora_a = _stack(learned[::2], ctx.dtype)
            if mask is None:
                grad_rows.addmm_(grad_inner, lora_a)
            else:
                grad_rows.addcmul_(grad_inner @ lora_a, mask.to(ctx.dtype), value=keep)
            grad_inputs = grad_rows.view(ctx.input_shape).to(ctx.input_dtype)
        return grad_inputs, None, None, None, *wanted


def _stack(lora_a: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the narrow matrices one below the other, (all R, I)."""
    return lora_a[0].to(dtype) if len(lora_a) == 1 else torch.cat(list(lora_a)).to(dtype)


def _split(together: Tensor, learned: Sequence[Tensor], dim: int = 1) -> tuple[Tensor, ...]:
    """Return what belongs to each layer of a tensor whose dimension `dim` is all R."""
    if len(learned) == 2:  # few tokens on a CPU: torch's own function takes as long as a product
        return (together,)
    return together.split([len(lora_a) for lora_a in learned[::2]], dim=dim)


@torch.library.custom_op("xtuner::adapted_product", mutates_args=())
def _adapted_product(rows: Tensor, inner: Tensor, factor: Tensor, weight: Tensor) -> Tensor:
    """x W^T + inner factor^T. One operation to a compiler, whose own sum of products would copy what it is added to."""
    return (inner @ factor.t()).addmm_(rows, weight.t())


@_adapted_product.register_fake
def _(rows: Tensor, inner: Tensor, factor: Tensor, weight: Tensor) -> Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]))


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _pull_back(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    inner, factor, weight = ctx.saved_tensors
    return grad @ weight, grad @ factor, grad.t() @ inner, None


_adapted_product.register_autograd(_pull_back, setup_context=_remember)
