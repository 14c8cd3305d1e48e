"""Settings that were asked for and do nothing, or something else, on the device at hand, in words (no torch)."""

import importlib.util
import os
import shutil
from collections.abc import Iterator

from xtuner.config.spec import RunSpec
from xtuner.errors import UserError

COMPILERS = ("c++", "g++", "clang++", "cl")
"""Programs that torch.compile makes code for a CPU with."""

ON_HOST = {"offload": "mlp", "offload_layers": "layers"}
"""Values of `model.recompute` -> the one that does the same where nothing can be moved."""


def idle_settings(spec: RunSpec, device: str, *, is_cpu: bool, has_bfloat16: bool) -> Iterator[str]:
    """Yield a sentence for every setting that differs from its default and has no effect, or another, on `device`.

    Number formats on a CPU have their words in `precision`, paged optimisers in theirs.
    """
    model = spec.model
    fp8 = model.quant is not None and model.quant.type == "fp8"
    if is_cpu:
        if twin := ON_HOST.get(str(model.recompute)):
            yield f"model.recompute={model.recompute}: on a CPU what is kept is on the host anyway, as with {twin}."
        if model.host_embedding:
            yield "model.host_embedding: on a CPU everything is in host memory, so it saves nothing."
        if fp8:
            yield "model.quant.type=fp8: a CPU has no such products; they are made in float32 of rounded numbers."
    elif spec.loop.precision == "bfloat16" and not has_bfloat16:
        yield f"loop.precision=bfloat16: {device} has no such products and imitates them slowly; float16 is its format."


def check_compiler(spec: RunSpec, *, is_cpu: bool) -> None:
    """Refuse model.compile=true where nothing is there to compile with.

    Raises:
        UserError: says what is missing.
    """
    if spec.model.compile is not True:
        return
    if not is_cpu and not can_compile():
        raise UserError("model.compile=true needs Triton, which is not here.", "Leave model.compile out.")
    if is_cpu and not any(shutil.which(name) for name in _compilers()):
        raise UserError(
            "model.compile=true needs a C++ compiler on a CPU, and none is here.",
            "Leave model.compile out (on a CPU it gains little), or install g++.",
        )


def can_compile() -> bool:
    """Whether torch.compile has what it makes kernels for a card with."""
    return importlib.util.find_spec("triton") is not None


def _compilers() -> list[str]:
    return [*os.environ.get("CXX", "").split()[:1], *COMPILERS]
