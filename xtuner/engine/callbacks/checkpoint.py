"""When state is saved, and how much of it is kept."""

from xtuner.engine.resume import save_checkpoint
from xtuner.engine.run import Callback, Run


class Checkpoint(Callback):
    """Saves every `checkpoint.every` iterations or epochs and at the end; old ones go when the new one is whole."""

    def after_iteration(self, run: Run) -> None:
        """Save where the cadence says so."""
        spec, length = run.spec.checkpoint, run.order.iters_per_epoch
        unit = length if spec.by_epoch else 1
        due = spec.every is not None and run.iteration % (spec.every * unit) == 0
        if not due and not (spec.last and run.last):
            return
        number = -(-run.iteration // length) if spec.by_epoch else run.iteration
        path = run.work.checkpoint(number, by_epoch=spec.by_epoch)
        save_checkpoint(run, path, optimizer=spec.optimizer)
        for callback in run.callbacks:
            callback.after_checkpoint(run, path)
