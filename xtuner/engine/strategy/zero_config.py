"""The one place where a DeepSpeed config is completed: every "auto" gets the value that the run has."""

import copy
from collections.abc import Mapping
from typing import Any

from xtuner.config.spec import RunSpec
from xtuner.engine.precision import Precision
from xtuner.errors import UserError
from xtuner.log import LOGGER

AUTO = "auto"
OURS = ("optimizer", "scheduler", "data_efficiency", "curriculum_learning")
"""Sections that would do what the run's own settings do."""
ADAM = ("Adam", "AdamW")
"""What a section `optimizer` may name beside values that are all "auto": configs written for other tools have it."""
OF_HIDDEN = {
    "reduce_bucket_size": lambda hidden: hidden * hidden,
    "stage3_prefetch_bucket_size": lambda hidden: hidden * hidden * 9 // 10,
    "stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
}
"""Sizes that depend on the width of the model; the numbers are those of transformers' integration."""


def fill_config(
    config: Mapping[str, Any], spec: RunSpec, precision: Precision, world: int, hidden: int
) -> dict[str, Any]:
    """Return a copy of a DeepSpeed config (https://www.deepspeed.ai/docs/config-json) that says what the run says.

    What the run decides (batch size, accumulation, clipping, number format) is put in, over another number with a
    notice. `hidden`: the width of the model.

    Raises:
        UserError: an "auto" that is not known here, or a section that has no effect.
    """
    filled = drop_sections(config)
    norm = spec.optim.max_norm or 0.0
    batch = spec.loop.batch_size * spec.loop.accumulate * world
    decided: dict[str, Any] = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": spec.loop.batch_size,
        "gradient_accumulation_steps": spec.loop.accumulate,
        "gradient_clipping": norm,
    }
    for name, value in decided.items():
        if filled.get(name, AUTO) not in (AUTO, value):
            LOGGER.warning("DeepSpeed's %s is %s as the run says, not %s.", name, value, filled[name])
        filled[name] = value
    for name, used in (("bf16", str(precision.compute) == "torch.bfloat16"), ("fp16", precision.scaled)):
        part = filled.setdefault(name, {})
        if part.get("enabled", AUTO) not in (AUTO, used):
            LOGGER.warning("DeepSpeed's %s.enabled is %s as loop.precision says, not %s.", name, used, part["enabled"])
        part["enabled"] = used
    zero = filled.setdefault("zero_optimization", {"stage": 2})
    for name, size in OF_HIDDEN.items():
        if zero.get(name) == AUTO:
            zero[name] = size(hidden)
    filled.setdefault("steps_per_print", 2**31)  # the run has its own log
    filled.setdefault("zero_allow_untested_optimizer", True)  # the run's optimisers are tested here
    filled.setdefault("zero_force_ds_cpu_optimizer", False)  # also where it is offloaded
    left = list(_find_auto(filled))
    if left:
        raise UserError(
            f'The DeepSpeed config has "auto" for {", ".join(left)}, for which the run has no value.',
            "Write a number, or leave the line out.",
        )
    return filled


def drop_sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without the sections that leave everything to the run.

    Raises:
        UserError: a section decides something that the run's own settings decide.
    """
    left = copy.deepcopy(dict(config))
    for section in OURS:
        part = left.pop(section, {})
        if _decides(section, part):
            raise UserError(
                f"The DeepSpeed config has a section {section}, which has no effect: the run's own settings decide.",
                "Delete it, and set optim, schedule or data of the run.",
            )
        if part:
            LOGGER.info("DeepSpeed's section %s is left out: the run's own settings are its values.", section)
    return left


def _decides(section: str, part: Any) -> bool:
    """Whether a section says more than "as the run does"."""
    if not part:
        return False
    if not isinstance(part, Mapping) or section not in ("optimizer", "scheduler"):
        return True
    known = section == "scheduler" or part.get("type") in ADAM
    return not known or any(value != AUTO for value in (part.get("params") or {}).values())


def check_sharded(spec: RunSpec, num_processes: int, *, sharded: bool) -> None:
    """Refuse what does not go where weights are `sharded` (ZeRO-3), which puts each together whenever it is called.

    Raises:
        UserError: MLPs in tiles, of which each process has as many as its row is long; weights in full beside 4 bits.
    """
    if sharded and num_processes > 1 and spec.model.recompute in ("mlp", "offload", "offload_groups"):
        raise UserError(
            f"model.recompute={spec.model.recompute} calls an MLP once for every tile of a row, and with ZeRO-3 all "
            "processes must call it equally often.",
            "Set model.recompute=layers or offload_layers, or take ZeRO-2.",
        )
    if sharded and spec.model.quant is not None and spec.model.quant.resident:
        raise UserError(
            "model.quant.resident has no effect with ZeRO-3, under which layers hold a part of their weights.",
            "Leave it out, or take ZeRO-2.",
        )


def _find_auto(value: Any, name: str = "") -> list[str]:
    if value == AUTO:
        return [name]
    if isinstance(value, Mapping):
        return [found for key, item in value.items() for found in _find_auto(item, f"{name}.{key}" if name else key)]
    return []


def cost_alone(config: Mapping[str, Any], num_trained: int) -> str:
    """Say why ZeRO on one card needs more memory than none, or nothing when it moves something to the host.

    ZeRO divides optimiser, gradients and weights by the number of cards; by one, nothing is saved. What it adds: a
    float32 copy of each trained weight beside a 16-bit model, and buffers for what it sends.
    """
    zero = config["zero_optimization"]
    if any(
        str((zero.get(part) or {}).get("device", "none")) != "none" for part in ("offload_optimizer", "offload_param")
    ):
        return ""
    halves = config["bf16"]["enabled"] or config["fp16"]["enabled"]
    buckets = int(zero.get("reduce_bucket_size", 5e8)) * (2 if zero.get("overlap_comm") else 1)
    added = 4 * num_trained * halves + (2 if halves else 4) * buckets
    return (
        f"ZeRO on one card saves nothing, and may take up to {added / 2**30:.1f} GiB more: copies of the trained "
        "weights and buffers for messages to nobody. Leave --deepspeed out, or choose one with offload."
    )
