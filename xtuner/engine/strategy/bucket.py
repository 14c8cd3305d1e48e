"""Gradients in a few flat buffers, so that each crosses ranks in one message, while the backward pass goes on."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

LEAST_BYTES = 32 * 2**20
"""A bucket is at least so large, but for the last: smaller messages are dominated by their start."""


class Buckets:
    """The gradients of `parameters`, as views into flat buffers.

    Buckets are sent in one order on all ranks, each when it and all before it are complete: the last layers come
    first, as in the backward pass (https://arxiv.org/abs/2006.15704). A weight that a batch does not touch has a
    gradient of zero.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.flat: list[Tensor] = []
        self.sizes: list[int] = []
        self.works: list[dist.Work] = []
        self.missing: list[int] = []
        self.sending = False
        for group in _split(list(reversed(parameters))):
            flat = torch.zeros(sum(p.numel() for p in group), dtype=group[0].dtype, device=group[0].device)
            at = 0
            for parameter in group:
                parameter.grad = flat[at : at + parameter.numel()].view(parameter.shape)
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, len(self.flat)))
                at += parameter.numel()
            self.flat.append(flat)
            self.sizes.append(len(group))

    def open(self) -> None:
        """Send each bucket as soon as the coming backward pass has completed it."""
        self.missing, self.sending = list(self.sizes), True

    def _arrived(self, bucket: int, parameter: Tensor) -> None:
        if not self.sending:
            return
        self.missing[bucket] -= 1
        while len(self.works) < len(self.flat) and self.missing[len(self.works)] == 0:
            self._send()

    def _send(self) -> None:
        work = dist.all_reduce(self.flat[len(self.works)], async_op=True)
        assert work is not None
        self.works.append(work)

    def average(self, world: int) -> None:
        """Send what is left, wait for all of it (on a card: queue the waiting), and divide by the number of ranks."""
        while len(self.works) < len(self.flat):
            self._send()
        for work, flat in zip(self.works, self.flat, strict=True):
            work.wait()
            flat.div_(world)
        self.works, self.sending = [], False

    def clear(self) -> None:
        """Make all gradients zero."""
        for flat in self.flat:
            flat.zero_()


def _split(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Group parameters of one dtype and device, in order, into buckets."""
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        last = groups[-1][-1] if groups else None
        same = last is not None and (last.dtype, last.device) == (parameter.dtype, parameter.device)
        if not same or room <= 0:
            groups.append([])
            room = LEAST_BYTES
        groups[-1].append(parameter)
        room -= parameter.numel() * parameter.element_size()
    return groups
