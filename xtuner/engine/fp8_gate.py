"""The gate before FP8: what rounding the frozen weights costs on the user's own first batch, said before training."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict

import torch
from transformers import PreTrainedModel

from xtuner.checkpoint.run_record import RunRecord
from xtuner.config.spec import QuantSpec
from xtuner.dataset.batch import Batch
from xtuner.engine.precision import Precision
from xtuner.engine.step import to_device
from xtuner.errors import UserError
from xtuner.log import LOGGER
from xtuner.model.fp8_linear import to_fp8
from xtuner.model.rounding import measure_rounding


def gate_fp8(
    spec: QuantSpec, batch: Batch, precision: Precision, record: RunRecord
) -> Callable[[PreTrainedModel], None]:
    """Return a `to_fp8` that measures what it does on `batch`, and notes that in `record` (`measured["fp8"]`).

    It raises a UserError where the loss changes by more than `spec.max_loss_change`.
    """

    def convert(model: PreTrainedModel) -> None:
        here = model.device
        with torch.autocast(here.type, precision.compute) if precision.autocast else nullcontext():
            cost = measure_rounding(model, to_device(batch, here), to_fp8)
        record.measured["fp8"] = {**asdict(cost), "limit": spec.max_loss_change}
        LOGGER.info(cost.say("FP8"))
        limit = spec.max_loss_change
        if limit is not None and not abs(cost.loss_change) <= limit:  # nan is refused too
            raise UserError(
                f"FP8 changes the loss of the first batch by {cost.loss_change:+.4f}, and the limit is {limit:g}.",
                "Use model.quant.bits=4 or no model.quant; or accept it: model.quant.max_loss_change=null",
            )

    return convert
