"""Which number formats a run computes and stores in: one rule, for plans and for runs (no torch)."""

from dataclasses import dataclass

from xtuner.config.spec import RunSpec

WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a number."""


@dataclass(frozen=True)
class Formats:
    """Words of `checkpoint.dtype`."""

    compute: str
    """The format of products."""
    weights: str
    """The format of the checkpoint's weights, those in 4 or 8 bits apart."""


def choose_formats(spec: RunSpec, *, is_cpu: bool, has_bfloat16: bool) -> Formats:
    """Decide the formats: what the spec asks for where the device can do it.

    On a card "auto" is bfloat16 where it has it, else float16. A CPU always computes and stores float32: other
    formats are slower there. Frozen weights (LoRA) are stored in the compute format; weights that are trained are
    stored in float32 unless `model.dtype` says otherwise, and in float32 always when the compute format is float16.
    """
    if is_cpu:
        return Formats("float32", "float32")
    asked, stored = spec.loop.precision, spec.model.dtype
    compute = ("bfloat16" if has_bfloat16 else "float16") if asked == "auto" else asked
    full = spec.model.lora is None
    if full and compute == "float16":
        return Formats(compute, "float32")
    if stored != "auto":
        return Formats(compute, stored)
    return Formats(compute, "float32" if full else compute)
