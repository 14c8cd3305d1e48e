"""What strategies of several processes share: who reads which rows, and the proof that frozen weights do not change."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from xtuner.config.spec import RunSpec
from xtuner.dataset.batch import Batch
from xtuner.engine.precision import Precision
from xtuner.engine.strategy.sequence import Ulysses
from xtuner.engine.strategy.single import Single
from xtuner.engine.strategy.world import World
from xtuner.errors import UserError

PIECE = 2**22
"""Bytes that are summed at a time."""


class Parallel(Single):
    """The parts of a `Strategy` that do not depend on where the weights are; several processes, or one."""

    def __init__(
        self,
        device: torch.device,
        precision: Precision,
        world: World,
        spec: RunSpec | None = None,
        sequence_parallel_size: int = 1,
    ) -> None:
        super().__init__(device, precision)
        self.world = world
        self.ulysses = Ulysses(world, sequence_parallel_size)
        self.reader, self.readers = self.ulysses.reader, self.ulysses.readers

    def cut(self, batch: Batch) -> Batch:
        """Tokens of a sequence may be spread over ranks."""
        return self.ulysses.cut(batch)


def quantised(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights whose bytes are no numbers by themselves."""
    plain = (torch.float32, torch.float16, torch.bfloat16)
    return [parameter for parameter in model.parameters() if parameter.dtype not in plain]


def checksum(parameters: Iterable[nn.Parameter]) -> int:
    """Sum up the bytes of weights, each weighed by its place; one weight is looked at after the other."""
    found = 0
    for parameter in parameters:
        for piece in parameter.detach().contiguous().flatten().view(torch.uint8).split(PIECE):
            weigher = torch.arange(1, len(piece) + 1, device=piece.device)
            found = (found * 31 + int((piece * weigher).sum())) % (2**61 - 1)
    return found


def check_frozen(before: int, after: int, world: World) -> None:
    """Prove by checksums that wrapping a model left its quantised weights as they were, the same on all ranks.

    Raises:
        UserError: they differ.
    """
    if world.agree(after != before):
        raise UserError(
            "The quantised weights changed while the model was spread over the processes.",
            "Train with strategy=ddp, or without model.quant.",
        )
    if world.agree(after) != -world.agree(-after):
        raise UserError(
            "The processes hold different quantised weights.", "See to it that all machines have the same model."
        )


def is_finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers are."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
