"""The words for number formats, as configs, flags and checkpoints spell them."""

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHORT = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The words of the flags of 0.1.x."""
