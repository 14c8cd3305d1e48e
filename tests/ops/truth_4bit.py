"""What 4-bit weights hold, by bitsandbytes itself."""

import copy

import torch
from bitsandbytes.functional import dequantize_4bit


def numbers(packed, state, dtype=torch.float32):
    """Return the weight in full. Each block is a row of its own: where a row ends inside of a block, the kernels of
    bitsandbytes 0.50.2 for CPUs with AVX-512 lose their place."""
    blocks = copy.copy(state)
    blocks.shape = torch.Size([state.shape.numel() // state.blocksize, state.blocksize])
    blocks.dtype = dtype
    assert blocks.shape.numel() == state.shape.numel(), "the last block is whole"
    return dequantize_4bit(packed, blocks).view(state.shape)
