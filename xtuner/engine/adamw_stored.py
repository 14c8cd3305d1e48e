"""AdamW whose moments bitsandbytes stores: in 8 bits, and on a card that is full in host memory."""

from collections.abc import Mapping
from typing import Any

import torch
from bitsandbytes.optim import AdamW
from torch import Tensor
from torch.optim import Optimizer

from xtuner.config.spec import OptimSpec
from xtuner.log import LOGGER

Groups = list[dict[str, Any]]


class StoredAdamW(AdamW):
    """AdamW of bitsandbytes that does not wait for the card after every weight, and whose moments are paged after a
    resume as before it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient.

        With paged moments the host waits at the end, once: it can reach that memory too, and may save it next.
        """
        assert closure is None, "the loss is not asked for again"
        card = None
        for number, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.init_state(group, parameter, number, index)
                self.prefetch_state(parameter)
                self.update_step(group, parameter, number, index)
                card = parameter.device
        if self.is_paged and card is not None and card.type == "cuda":
            torch.cuda.synchronize(card)

    def load_state_dict(self, state_dict: Mapping[str, Any], move_to_device: bool = True) -> None:
        """Go on from what `state_dict` returned; no moment passes through the card on its way to paged memory."""
        super().load_state_dict(state_dict, move_to_device=False)
        if not move_to_device:
            return
        for parameter, state in self.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    moment = name in ("state1", "state2")
                    state[name] = self._moment(parameter, value) if moment else value.to(parameter.device)

    def _moment(self, parameter: Tensor, value: Tensor) -> Tensor:
        """Put a moment where one that is new would be."""
        found: Tensor = self.get_state_buffer(parameter, dtype=value.dtype)
        found.copy_(value)
        return found


def adamw_8bit(groups: Groups, spec: OptimSpec) -> Optimizer:
    """AdamW with its two moments in 8 bits (https://arxiv.org/abs/2110.02861); tensors under 4096 numbers keep 32."""
    return _build(groups, spec, bits=8, paged=False)


def paged_adamw(groups: Groups, spec: OptimSpec) -> Optimizer:
    """AdamW whose moments move to host memory when the card is full; PagedAdamW32bit of 0.1.x."""
    return _build(groups, spec, bits=32, paged=True)


def paged_adamw_8bit(groups: Groups, spec: OptimSpec) -> Optimizer:
    """`adamw_8bit` whose moments move to host memory when the card is full."""
    return _build(groups, spec, bits=8, paged=True)


def _build(groups: Groups, spec: OptimSpec, *, bits: int, paged: bool) -> Optimizer:
    if paged and groups[0]["params"][0].device.type == "cpu":
        LOGGER.info("optim.name=%s: a CPU has no card to page from, so the moments simply stay in memory.", spec.name)
        paged = False
    optimiser: Optimizer = StoredAdamW(
        groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, optim_bits=bits, is_paged=paged
    )
    return optimiser
