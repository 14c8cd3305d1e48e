"""Weights that move in the middle of the backward pass, each as soon as its gradient is complete.

So the gradients never exist together (the idea of https://arxiv.org/abs/2306.09782). What is left of the step after
the backward pass finds no gradients and does nothing.
"""

from functools import partial

from torch import Tensor
from torch.optim import Optimizer

from xtuner.config.spec import RunSpec
from xtuner.errors import UserError


def check_in_backward(spec: RunSpec, num_processes: int, *, scaled: bool) -> None:
    """Refuse what a gradient that is gone at once makes impossible and a spec alone does not show; `scaled`: the loss
    is, for float16.

    Raises:
        UserError: several processes, another strategy than one process alone, or a scaled loss.
    """
    if not spec.optim.in_backward:
        return
    if num_processes > 1 or spec.strategy.name not in ("auto", "single"):
        raise UserError(
            "optim.in_backward moves weights before other processes could add their gradients.",
            "Leave it out, or train on one card with strategy=single.",
        )
    if scaled:
        raise UserError(
            "optim.in_backward does not go with float16, whose gradients are all looked at before a step.",
            "Leave it out, or set loop.precision=float32.",
        )


def step_in_backward(optimiser: Optimizer) -> None:
    """Let `optimiser` move each of its parameters in the coming backward passes, and free its gradient."""
    for index, group in enumerate(optimiser.param_groups):
        for parameter in group["params"]:
            parameter.register_post_accumulate_grad_hook(partial(_step, optimiser, index))


def _step(optimiser: Optimizer, index: int, parameter: Tensor) -> None:
    """Make the step of one parameter of group `index`: for its time the optimiser has no other."""
    groups = optimiser.param_groups
    optimiser.param_groups = [{**groups[index], "params": [parameter]}]
    try:
        optimiser.step()
    finally:
        optimiser.param_groups = groups
    parameter.grad = None
