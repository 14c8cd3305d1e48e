"""The loss on rows that are not trained."""

from pathlib import Path

from xtuner.dataset.sampler import Order
from xtuner.engine.callbacks.paused import paused
from xtuner.engine.run import Callback, Run
from xtuner.engine.step import to_device
from xtuner.log import LOGGER


class Validation(Callback):
    """Every `loop.validate_every` iterations, or at each checkpoint, and at the end; weighted by targets."""

    measures = ("val_loss",)

    def __init__(self) -> None:
        self.done = -1

    def after_iteration(self, run: Run) -> None:
        """Validate where the cadence says so."""
        every = run.spec.loop.validate_every
        if (every is not None and run.iteration % every == 0) or run.last:
            self.validate(run)

    def after_checkpoint(self, run: Run, path: Path) -> None:
        """Validate at checkpoints when there is no cadence."""
        if run.spec.loop.validate_every is None:
            self.validate(run)

    def validate(self, run: Run) -> None:
        """Measure, log and write `val_loss`, once per iteration; a wish to stop cuts it short: it may take long."""
        packs = run.data.validation
        if packs is None or self.done == run.iteration:
            return
        self.done = run.iteration
        strategy = run.strategy
        order = Order(len(packs), run.spec.loop.batch_size, False, 0, rank=strategy.reader, world=strategy.readers)
        total = weight = 0.0
        with paused(run.model):
            for number in range(order.iters_per_epoch):
                if run.stopping():
                    return
                batch = run.part(packs, order, number)
                loss = strategy.loss(run.objective, run.model, to_device(batch, strategy.device))
                total += float(loss.total)
                weight += float(loss.weight)
        total, weight = strategy.world.sum([total, weight])
        value = total / max(weight, 1.0)
        LOGGER.info("Iter(val) [%d/%d]  loss: %.4f", run.iteration, run.num_iters, value)
        run.work.write_scalars({"val_loss": value, "iter": run.iteration, "step": run.iteration})
        for callback in run.callbacks:
            callback.after_validation(run, {"val_loss": value})
