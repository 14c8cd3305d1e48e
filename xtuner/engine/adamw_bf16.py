"""AdamW that keeps its moments in bf16: four bytes a weight, and two more for a weight that is bf16 itself."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from xtuner.config.spec import OptimSpec
from xtuner.errors import UserError
from xtuner.ops.adamw import adamw_step
from xtuner.ops.pace import Pace
from xtuner.ops.stochastic import random_keys

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamWBf16(Optimizer):
    """AdamW whose moments are bf16, rounded by chance, and whose bf16 weights are rounded by chance too.

    The chances of a step are a function of `seed`, the number of the parameter and of how many steps it has made: a
    resumed run, and every rank, rounds alike. State has the names of torch's AdamW.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, seed: int = 0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "seed": seed})
        trained = [parameter for group in self.param_groups for parameter in group["params"]]
        other = next((parameter.dtype for parameter in trained if not _is_fitting(parameter)), None)
        if other is not None:
            raise UserError(
                f"optim.name=adamw_bf16 trains weights in bfloat16 or float32, and these are {other}.",
                "Set model.dtype=bfloat16.",
            )
        self.numbers = {id(parameter): number for number, parameter in enumerate(trained)}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        assert closure is None, "the loss is not asked for again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    for name in MOMENTS:
                        state[name] = torch.zeros(parameter.shape, dtype=torch.bfloat16, device=parameter.device)
                state["step"] += 1  # a tensor on the host, as torch's AdamW has it: to read it waits for nothing
                step = int(state["step"])
                pace = Pace.of(step, group["lr"], tuple(group["betas"]), group["eps"], group["weight_decay"])
                keys = random_keys(group["seed"], step, self.numbers[id(parameter)])
                first, second = (state[name] for name in MOMENTS)
                adamw_step(parameter.detach(), parameter.grad, first, second, pace, keys)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; torch casts moments to the format of their weight, so cast back."""
        super().load_state_dict(dict(state_dict))
        for state in self.state.values():
            for name in MOMENTS:
                state[name] = state[name].to(torch.bfloat16)


def adamw_bf16(groups: list[dict[str, Any]], spec: OptimSpec) -> Optimizer:
    """AdamW with moments in bf16, rounded by chance (https://arxiv.org/abs/2010.06192)."""
    return AdamWBf16(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)


def _is_fitting(parameter: torch.Tensor) -> bool:
    return parameter.dtype in (torch.float32, torch.bfloat16)
