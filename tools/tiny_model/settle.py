"""Gives the trained weights two properties of large models that small ones lack, so that what people type works here.

1. Learning rates made for wide models move it. A step of AdamW changes an adapter's entries by about the learning
   rate, whatever the width, and a wide layer adds up more of them. Here the inputs of every linear layer are GAIN
   times larger and its weights GAIN times smaller: the same function, on which an adapter acts GAIN times stronger.
   GAIN is a power of two, so the outputs are the same to the last bit.
2. An adapter trained on its 4-bit form fits the 16-bit form. Weights that lie on the grid of NF4 come back unchanged
   from it; in a wide layer the errors would average out, in a narrow one they do not.
"""

from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file
from torch import Tensor

from xtuner.model.families.internlm2 import InternLM2Config

GAIN = 64
MATRICES = ("wqkv.weight", "wo.weight", "w1.weight", "w2.weight", "w3.weight")
ROUNDS = 4
"""After so many trips through NF4 (whose scales are quantised too) the weights move by 0.3 % at most."""


def settle(folder: Path) -> None:
    """Change `model.safetensors` in `folder`; to be done once, after training."""
    config = InternLM2Config.from_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    for name in state:
        state[name] = (
            to_grid(gain(name, state[name], config)) if name.endswith(MATRICES) else gain(name, state[name], config)
        )
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def gain(name: str, weight: Tensor, config: InternLM2Config) -> Tensor:
    """Return a weight for inputs that are GAIN times larger. Norms make them so; so does the value part of wqkv for
    wo, and w3 for w2, by not becoming smaller themselves."""
    if name.endswith(("attention_norm.weight", "ffn_norm.weight")) or name == "model.norm.weight":
        return weight * GAIN
    if name.endswith("wqkv.weight"):
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        parts = weight.view(groups, heads // groups + 2, -1, weight.shape[1]).clone()
        parts[:, :-1] /= GAIN
        return parts.view(weight.shape)
    return (
        weight / GAIN if name.endswith(("w1.weight", "w2.weight", "wo.weight")) or name == "output.weight" else weight
    )


def to_grid(weight: Tensor) -> Tensor:
    """Return the nearest weight (O, I) in bfloat16 that NF4 with double quantisation holds (nearly) exactly."""
    for _ in range(ROUNDS):
        packed, quantised = quantize_4bit(weight.bfloat16(), quant_type="nf4", compress_statistics=True)
        weight = dequantize_4bit(packed, quantised).to(torch.bfloat16)
    return weight
