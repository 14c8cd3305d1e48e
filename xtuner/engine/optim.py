"""Optimisers by name, and the one rule of what decays."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from xtuner.config.choice import pick
from xtuner.config.spec import OptimSpec
from xtuner.engine import OPTIMISERS
from xtuner.errors import UserError
from xtuner.log import LOGGER

Groups = list[dict[str, Any]]


def build_optimiser(spec: OptimSpec, model: nn.Module) -> Optimizer:
    """Make the optimiser of the trainable parameters of `model`.

    Raises:
        UserError: unknown name, or nothing to train.
    """
    groups = decay_groups(model, spec.weight_decay)
    if not groups:
        raise UserError("Nothing in this model is trained.", "Give model.lora, or train the model without model.quant.")
    optimiser: Optimizer = pick(OPTIMISERS, spec.name, "optimiser")(groups, spec)
    return optimiser


def decay_groups(model: nn.Module, weight_decay: float) -> Groups:
    """Split the trainable parameters: matrices decay, vectors (norms, biases) do not.

    0.1.x let everything decay; for LoRA, whose parameters are all matrices, that is the same.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(groups: Groups, spec: OptimSpec) -> Optimizer:
    """AdamW (https://arxiv.org/abs/1711.05101), one fused kernel where torch has it."""
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=fused)


def adamw_8bit(groups: Groups, spec: OptimSpec) -> Optimizer:
    """AdamW with its two moments in 8 bits (https://arxiv.org/abs/2110.02861); tensors under 4096 numbers keep 32."""
    return _bitsandbytes("AdamW8bit", groups, spec)


def paged_adamw(groups: Groups, spec: OptimSpec) -> Optimizer:
    """AdamW whose moments move to host memory when the card is full; PagedAdamW32bit of 0.1.x."""
    return _bitsandbytes("PagedAdamW32bit", groups, spec)


def paged_adamw_8bit(groups: Groups, spec: OptimSpec) -> Optimizer:
    """`adamw_8bit` whose moments move to host memory when the card is full."""
    return _bitsandbytes("PagedAdamW8bit", groups, spec)


def sgd(groups: Groups, spec: OptimSpec) -> Optimizer:
    """Gradient descent with momentum `betas[0]`; `eps` and `betas[1]` are AdamW's and not used."""
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.betas[0])


def _bitsandbytes(name: str, groups: Groups, spec: OptimSpec) -> Optimizer:
    import bitsandbytes  # slow to import, and few runs need it

    if name.startswith("Paged") and groups[0]["params"][0].device.type == "cpu":
        LOGGER.info("optim.name=%s: a CPU has no card to page from, so the moments simply stay in memory.", spec.name)
        name = name.removeprefix("Paged")
    optimiser: Optimizer = getattr(bitsandbytes.optim, name)(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)
    return optimiser
