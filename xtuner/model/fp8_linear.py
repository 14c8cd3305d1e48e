"""Frozen linear layers in 8-bit floating point: how they are stored, and how a model gets them."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtuner.errors import UserError
from xtuner.ops.fp8 import FORMAT, Fp8Weight, quantise_rows


class Fp8Linear(nn.Linear):
    """A linear layer (O, I) whose weight is FP8 with one fp32 scale a row; it cannot be trained."""

    scales: Tensor
    """(O, 1)."""
    transposed: Tensor | None
    """(I, O), the weight once more; None: it is made when the backward pass asks for it."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scales = quantise_rows(layer.weight.detach())
        # as bytes: PEFT gives an adapter the dtype of a weight in floating point, which must not be this one
        self.weight = nn.Parameter(weight.view(torch.uint8), requires_grad=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("transposed", None, persistent=False)
        self.bias = layer.bias

    def frozen(self) -> Fp8Weight:
        """Return the weight as what it means."""
        transposed = None if self.transposed is None else self.transposed.view(FORMAT)
        return Fp8Weight(self.weight.view(FORMAT), self.scales, transposed)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) in the dtype of `x`."""
        output = self.frozen().linear(x.reshape(-1, self.in_features))
        if self.bias is not None:
            output = output + self.bias.to(output.dtype)
        return output.view(*x.shape[:-1], self.out_features)


def to_fp8(model: PreTrainedModel) -> None:
    """Replace every linear layer of `model` but the output head, and freeze the rest.

    Layers whose sizes are no multiples of 16, which the products need, stay as they are.

    Raises:
        UserError: the card knows no FP8.
    """
    if model.device.type == "cuda" and torch.cuda.get_device_capability(model.device) < (9, 0):
        raise UserError(
            "This card does not multiply FP8 with a scale for each row; Hopper (H100) and later do.",
            "Use model.quant.bits=4, or leave model.quant out.",
        )
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    fitting = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not head and (module.in_features | module.out_features) % 16 == 0
    ]
    for name in fitting:  # one by one, so that no more than one weight is held twice
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        model.set_submodule(name, Fp8Linear(layer))


def keep_transposes(model: nn.Module) -> None:
    """Hold the weights of FP8 layers a second time, in the order in which the backward pass reads them."""
    for module in model.modules():
        if isinstance(module, Fp8Linear):
            module.transposed = module.weight.data.t().contiguous()
