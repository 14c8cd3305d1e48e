"""Optimisers by name, and the one rule of what decays."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from xtuner.config.choice import pick
from xtuner.config.spec import OptimSpec, RunSpec
from xtuner.engine import OPTIMISERS
from xtuner.engine.in_backward import check_in_backward, step_in_backward
from xtuner.errors import UserError
from xtuner.log import LOGGER

Groups = list[dict[str, Any]]


def check_optimiser(spec: RunSpec, num_processes: int, *, scaled: bool) -> None:
    """Refuse an optimiser that does not go with the rest of a run; `scaled`: the loss is, for float16.

    Raises:
        UserError: unknown name, or what of the run it does not go with.
    """
    pick(OPTIMISERS, spec.optim.name, "optimiser")
    check_in_backward(spec, num_processes, scaled=scaled)
    if spec.optim.name == "adamw_bf16" and spec.strategy.name == "deepspeed":
        raise UserError(
            "DeepSpeed keeps a copy of the weights in float32, which optim.name=adamw_bf16 is there to save.",
            "Set optim.name=adamw, or strategy=ddp.",
        )


def build_optimiser(spec: OptimSpec, model: nn.Module, seed: int = 0) -> Optimizer:
    """Make the optimiser of the trainable parameters of `model`; `seed` is for those that round by chance.

    Raises:
        UserError: unknown name, or nothing to train.
    """
    groups = decay_groups(model, spec.weight_decay)
    if not groups:
        raise UserError("Nothing in this model is trained.", "Give model.lora, or train the model without model.quant.")
    optimiser: Optimizer = pick(OPTIMISERS, spec.name, "optimiser")(groups, spec)
    if "seed" in optimiser.defaults:
        for group in optimiser.param_groups:
            group["seed"] = seed
    elif any(parameter.dtype == torch.bfloat16 for group in groups for parameter in group["params"]):
        LOGGER.warning(
            "Weights in bfloat16 lose what optim.name=%s adds to them where that is under a 256th of the weight; "
            "optim.name=adamw_bf16 rounds so that nothing is lost on average.",
            spec.name,
        )
    if spec.in_backward:
        step_in_backward(optimiser)
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


def sgd(groups: Groups, spec: OptimSpec) -> Optimizer:
    """Gradient descent with momentum `betas[0]`; `eps` and `betas[1]` are AdamW's and not used."""
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.betas[0])
