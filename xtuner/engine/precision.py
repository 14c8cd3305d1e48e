"""Which device a run uses, and which number formats it computes and stores in."""

from dataclasses import dataclass

import torch

from xtuner.checkpoint.dtype import DTYPES
from xtuner.config.spec import RunSpec
from xtuner.engine.plan.formats import choose_formats

NOT_FINITE_HELP = "Try a smaller optim.lr, more schedule.warmup, or loop.precision=bfloat16 (float32 on older cards)."
"""What helps against nan and inf."""


@dataclass(frozen=True)
class Precision:
    """`compute`: the format of products, `weights`: that of the loaded checkpoint, `why`: one line for the log."""

    compute: torch.dtype
    weights: torch.dtype
    why: str

    @property
    def autocast(self) -> bool:
        """Whether products run in another format than float32."""
        return self.compute != torch.float32

    @property
    def scaled(self) -> bool:
        """Whether gradients would vanish in the format, so that the loss is scaled (https://arxiv.org/abs/1710.03740)."""
        return self.compute == torch.float16


def find_device() -> torch.device:
    """Return the first CUDA card, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def choose_precision(spec: RunSpec, device: torch.device) -> Precision:
    """Decide the formats: what the spec asks for where the device can do it, and say so.

    The rule is that of `plan.formats`.
    """
    is_cpu = device.type == "cpu"
    native = not is_cpu and torch.cuda.is_bf16_supported(including_emulation=False)
    formats = choose_formats(spec, is_cpu=is_cpu, has_bfloat16=native)
    compute, weights = DTYPES[formats.compute], DTYPES[formats.weights]
    if is_cpu:
        others = {name for name in (spec.loop.precision, spec.model.dtype) if name not in ("auto", "float32")}
        note = f" ({' and '.join(sorted(others))} would be slower here)" if others else ""
        return Precision(compute, weights, f"CPU, computing and storing float32{note}")
    name = torch.cuda.get_device_name(device)
    kind = "trained" if spec.model.lora is None else "frozen"
    scaling = ", loss scaled" if compute == torch.float16 else ""
    why = f"{name}, computing {formats.compute}{scaling}, {kind} weights in {formats.weights}"
    return Precision(compute, weights, why)
