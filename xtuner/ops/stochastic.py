"""Rounding to bf16 up or down by chance, so that the mean of what is stored is the number itself.

A sum that grows by less than half a step of its format stands still when it is rounded to the nearest; rounded by
chance it grows as it should on average (https://arxiv.org/abs/2010.06192). The chance is a function of a key and of
the place of a number, and hangs on nothing that happened before.
"""

import hashlib

import torch
from torch import Tensor

FACTORS = (0x7FEB352D, 0x846CA68B)
"""Odd factors of the mixing function (https://github.com/skeeto/hash-prospector, "lowbias32")."""
THIRD = 0x9E3779B9
"""Leads from the 32 random bits of a number to further ones."""

Keys = tuple[int, int]
"""Two whole numbers of 32 bits with a sign."""


def random_keys(seed: int, step: int, number: int) -> Keys:
    """Return what the random bits of parameter `number` at `step` hang on."""
    digest = hashlib.blake2b(f"{seed} {step} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:], "little", signed=True)


def random_bits(start: int, count: int, keys: Keys, device: torch.device) -> Tensor:
    """Return 32 random bits for each of the numbers `start`, `start + 1`, ...: (count,) int32."""
    places = torch.arange(start, start + count, dtype=torch.int64, device=device).to(torch.int32)
    return mix(mix(places.add_(keys[0])).bitwise_xor_(keys[1]))


def more_bits(bits: Tensor) -> Tensor:
    """Return 32 further random bits for each number."""
    return mix(bits + _signed(THIRD))


def mix(bits: Tensor) -> Tensor:
    """Change int32 numbers in place so that each bit of the result hangs on all bits of what was given."""
    bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
    bits.mul_(_signed(FACTORS[0]))
    bits.bitwise_xor_((bits >> 15).bitwise_and_(0x1FFFF))
    bits.mul_(_signed(FACTORS[1]))
    return bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))


def round_by_chance(values: Tensor, bits: Tensor) -> Tensor:
    """Round fp32 `values` to bf16: away from zero with the probability that lies in what bf16 cuts off.

    Of `bits` (int32, like `values`) the lower 16 decide. Infinity and nan stay what they are.
    """
    moved = values.view(torch.int32).add(bits & 0xFFFF).bitwise_and_(-0x10000).view(torch.float32)
    return torch.where(values.isfinite(), moved, values).to(torch.bfloat16)


def _signed(number: int) -> int:
    """Return the number of 32 bits with a sign that has the same bits."""
    return number - 2**32 if number >= 2**31 else number
