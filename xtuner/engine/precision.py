"""Which device a run uses, and which number formats it computes and stores in."""

from dataclasses import dataclass

import torch

from xtuner.config.spec import RunSpec

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

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

    On CUDA "auto" is bfloat16 where the card has it, else float16. A CPU always computes and stores float32: other
    formats are slower there. Frozen weights (LoRA) are stored in the compute format; weights that are trained are
    stored in float32 unless `model.dtype` says otherwise, and in float32 always when the compute format is float16.
    """
    asked, stored = spec.loop.precision, spec.model.dtype
    if device.type == "cpu":
        others = {name for name in (asked, stored) if name not in ("auto", "float32")}
        note = f" ({' and '.join(sorted(others))} would be slower here)" if others else ""
        return Precision(torch.float32, torch.float32, f"CPU, computing and storing float32{note}")
    if asked == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        compute = torch.bfloat16 if native else torch.float16
    else:
        compute = DTYPES[asked]
    full = spec.model.lora is None
    if full and compute == torch.float16:
        weights = torch.float32
    elif stored != "auto":
        weights = DTYPES[stored]
    else:
        weights = torch.float32 if full else compute
    name = torch.cuda.get_device_name(device)
    kind = "trained" if full else "frozen"
    scaling = ", loss scaled" if compute == torch.float16 else ""
    why = f"{name}, computing {_name(compute)}{scaling}, {kind} weights in {_name(weights)}"
    return Precision(compute, weights, why)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
