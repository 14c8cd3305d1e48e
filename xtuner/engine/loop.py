"""The loop: iterations until the last, or until someone or something stops it; then what to do next."""

import shlex
import time

import torch

from xtuner.engine.memory import advise
from xtuner.engine.metrics import NotFinite, peak_memory
from xtuner.engine.precision import NOT_FINITE_HELP
from xtuner.engine.resume import save_checkpoint
from xtuner.engine.run import Run
from xtuner.engine.spike import IN_A_ROW, SpikeGuard
from xtuner.engine.step import Micro, train_step
from xtuner.errors import UserError, is_out_of_memory
from xtuner.log import LOGGER
from xtuner.program import program

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
            if run.stopping():
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
        if run.strategy.world.is_broken(error):
            raise _say_way_on(run, run.strategy.world.explain(error)) from error
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
        if micro.skipped:
            run.metrics.leave_out(window.start)
        for callback in run.callbacks:
            callback.after_iteration(run)
        run.metrics.restart_clock()
        if run.stopping() and not run.last:
            raise Stopped

    window, guard = run.window(), run.spikes

    def judge(loss: float, norm: float) -> bool:
        assert guard is not None
        reason = guard.judge(loss, norm)
        if reason is not None:
            _tell_spike(run, guard, window, reason, [row for batch in batches for row in batch.rows])
        return reason is None

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
        judge=judge if guard is not None else None,
    )


def _tell_spike(run: Run, guard: SpikeGuard, window: range, reason: str, rows: list[int]) -> None:
    """Name what is left out.

    Raises:
        UserError: too many in a row.
    """
    one = len(window) == 1
    what = f"iteration {window.start + 1}" if one else f"iterations {window.start + 1} to {window.stop}"
    origins = "; ".join(run.data.train.origin(row) for row in rows)
    if guard.in_a_row >= IN_A_ROW:
        raise UserError(
            f"{guard.in_a_row} steps in a row were left out, at last {what}: {reason}. The last rows: {origins}.",
            "Try a smaller optim.lr, or look at the rows that the log names.",
        )
    LOGGER.warning("The step of %s is left out: %s. Its rows: %s.", what, reason, origins)


def continue_command(run: Run, checkpoint: str) -> str:
    """Return what to type to go on."""
    folder = run.work.folder
    words = ["train", str(run.work.config), "--work-dir", str(folder), "--resume", checkpoint]
    return f"{program()} {shlex.join(words)}"


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
    own = error.own and bool(error.rows)
    reader = run.strategy.world.agree(run.strategy.reader + 1 if own else 0) - 1  # of several the last is named
    rows = error.rows if reader < 0 or run.strategy.readers == 1 else run.order.of(reader).rows(error.iteration)
    first = run.data.train[rows[0]] if rows else None
    shown = run.tokenizer.decode(list(first.input_ids)[:SHOWN])[:SHOWN] if first is not None else ""
    origins = "; ".join(run.data.train.origin(row) for row in rows)
    fix = f"{NOT_FINITE_HELP} To leave out such steps, add --skip-spikes."
    return UserError(f"{error.what} Its batch: {origins}, beginning {shown!r}.", fix)


def _explain_memory(run: Run) -> UserError:
    device = run.strategy.device
    held = f"{peak_memory(device):,} MiB were held"
    if device.type == "cuda":
        held += f" of {torch.cuda.get_device_properties(device).total_memory // 2**20:,}"
    return UserError(f"The memory ran out at iteration {run.iteration + 1} ({held}).", advise(run.spec, run.plan))


def _say_way_on(run: Run, error: UserError) -> UserError:
    """Add to an error how to go on from the last checkpoint of this run; the folder may hold those of others.

    What another rank stopped for says it already.
    """
    way = _describe_way_on(run)
    fix = error.fix if way in error.fix else f"{error.fix} {way}".strip()
    return type(error)(error.what, fix, error.exit_code)


def _describe_way_on(run: Run) -> str:
    if not run.kept:
        return "No checkpoint was written before." if run.iteration else ""
    last = run.work.folder / run.kept[-1]
    if not last.exists():
        return f"The last checkpoint, {last}, is not there any more."
    way = f"The last checkpoint, {last.name}, is intact."
    if run.spec.checkpoint.optimizer:
        way = f"{way} To go on from it, type: {continue_command(run, str(last))}"
    return way
