"""The DeepSpeed configs of the recipe book: how training is spread over cards, as JSON.

Schema: https://www.deepspeed.ai/docs/config-json. What is "auto" is filled in from the config of the run.
"""

import json
from collections.abc import Mapping
from typing import Any

ON_CPU: Mapping[str, Any] = {"device": "cpu", "pin_memory": True}
GATHER: Mapping[str, Any] = {"stage3_gather_16bit_weights_on_model_save": True}

ZERO: Mapping[str, Mapping[str, Any]] = {
    "deepspeed_zero1": {"stage": 1, "overlap_comm": True},
    "deepspeed_zero2": {"stage": 2, "overlap_comm": True},
    "deepspeed_zero2_offload": {"stage": 2, "overlap_comm": True, "offload_optimizer": ON_CPU},
    "deepspeed_zero3": {"stage": 3, "overlap_comm": True, **GATHER},
    "deepspeed_zero3_offload": {
        "stage": 3,
        "overlap_comm": True,
        "offload_optimizer": ON_CPU,
        "offload_param": ON_CPU,
        **GATHER,
    },
}


def render_deepspeed(name: str) -> str:
    """Write the JSON of `ZERO[name]`."""
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": ZERO[name],
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "initial_scale_power": 16},
    }
    return f"{json.dumps(config, indent=2)}\n"
