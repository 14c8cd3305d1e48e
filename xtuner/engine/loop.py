"""The loop: iterations until the last, or until someone or something stops it; then what to do next."""

import shlex
import time

import torch

from xtuner.engine.memory import advise
from xtuner.engine.metrics import NotFinite, peak_memory
from xtuner.engine.precision import NOT_FINITE_HELP
from xtuner.engine.resume import save_checkpoint
from xtuner.engine.run import Run
from xtuner.engine.step import Micro, train_step
from xtuner.errors import UserError, is_out_of_memory

SHOWN = 200
"""Characters of a sample that an error shows."""


class Stopped(Exception):
    """Someone wished to stop; the iteration is over."""


def run_loop(run: Run) -> None:
    """Do all iterations that are left, with the callbacks around them.

    Raises:
        UserError: stopped by a signal (saved; says how to continue; exit code 130 or 143), nan or inf (names the
            samples), out of memory (says what to change), and what callbacks raise.
    """
    try:
        for callback in run.callbacks:
            callback.before_train(run)
        run.metrics.restart_clock()
        while not run.last:
            if run.wish.signal is not None:
                raise Stopped
            _next_step(run)
        for callback in run.callbacks:
            callback.after_train(run)
    except Stopped:
        raise _save_and_explain(run) from None
    except NotFinite as error:
        raise _say_way_on(run, _name_batch(run, error)) from error
    except UserError as error:
        raise _say_way_on(run, error) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _say_way_on(run, _explain_memory(run)) from error
    finally:
        for callback in run.callbacks:
            callback.close(run)


def _next_step(run: Run) -> None:
    """Do the iterations of one optimiser step."""

    def after(micro: Micro) -> None:
        run.iteration = micro.iteration + 1
        if micro.stepped:
            run.border = run.iteration
        run.metrics.add(micro)
        for callback in run.callbacks:
            callback.after_iteration(run)
        run.metrics.restart_clock()
        if run.wish.signal is not None and not run.last:
            raise Stopped

    window = run.window()
    started = time.perf_counter()
    batches = [run.batch(iteration) for iteration in window]
    run.metrics.data_seconds += time.perf_counter() - started
    train_step(
        run.strategy,
        run.objective,
        run.model,
        batches,
        first=window.start,
        seed=run.seed,
        lr=run.schedule.lr(window[-1]),
        max_norm=run.spec.optim.max_norm,
        after=after,
    )


def continue_command(run: Run, checkpoint: str) -> str:
    """Return what to type to go on."""
    folder = run.work.folder
    words = ["xtuner", "train", str(run.work.config), "--work-dir", str(folder), "--resume", checkpoint]
    return shlex.join(words)


def _save_and_explain(run: Run) -> UserError:
    run.strategy.forget()
    run.record.status = "stopped"
    code = run.wish.exit_code
    if run.iteration == 0:
        return UserError(f"Stopped by {run.wish.name} before the first iteration.", "Nothing was saved.", code)
    path = run.work.checkpoint(run.iteration)
    if run.record.last_checkpoint != path.name or not run.spec.checkpoint.optimizer:
        save_checkpoint(run, path)
    what = f"Stopped by {run.wish.name} at iteration {run.iteration} of {run.num_iters}; it is saved."
    return UserError(what, f"To go on, type: {continue_command(run, str(path))}", code)


def _name_batch(run: Run, error: NotFinite) -> UserError:
    first = run.data.train[error.rows[0]] if error.rows else None
    shown = run.tokenizer.decode(list(first.input_ids)[:SHOWN])[:SHOWN] if first is not None else ""
    origins = "; ".join(run.data.train.origin(row) for row in error.rows)
    return UserError(f"{error.what} Its batch: {origins}, beginning {shown!r}.", NOT_FINITE_HELP)


def _explain_memory(run: Run) -> UserError:
    device = run.strategy.device
    held = f"{peak_memory(device):,} MiB were held"
    if device.type == "cuda":
        held += f" of {torch.cuda.get_device_properties(device).total_memory // 2**20:,}"
    return UserError(f"The memory ran out at iteration {run.iteration + 1} ({held}).", advise(run.spec))


def _say_way_on(run: Run, error: UserError) -> UserError:
    """Add to an error how to go on from the last checkpoint of this run; the folder may hold those of others."""
    if not run.kept:
        none = "No checkpoint was written before." if run.iteration else ""
        return UserError(error.what, f"{error.fix} {none}".strip(), error.exit_code)
    last = run.work.folder / run.kept[-1]
    way = f"The last checkpoint, {last.name}, is intact."
    if run.spec.checkpoint.optimizer:
        way = f"{way} To go on from it, type: {continue_command(run, str(last))}"
    return UserError(error.what, f"{error.fix} {way}".strip(), error.exit_code)
