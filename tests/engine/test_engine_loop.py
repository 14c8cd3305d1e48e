"""The loop around a tiny model: cadence, keeping, resuming, stopping, and what goes wrong."""

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from engine_fakes import Next, TinyModel, make_run, read_scalars

from xtuner.checkpoint.run_record import read_run
from xtuner.checkpoint.state import find_last, load_state
from xtuner.dataset.collate import collate
from xtuner.engine.callbacks.progress import ProgressLog
from xtuner.engine.interrupt import listen
from xtuner.engine.loop import run_loop
from xtuner.engine.resume import check_spec, find_checkpoint, read_meta, restore, save_checkpoint
from xtuner.engine.run import Callback, Run
from xtuner.engine.strategy.world import World
from xtuner.errors import UserError
from xtuner.objective.loss import Loss
from xtuner.program import program


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pth"))


def finish(run: Run) -> Run:
    try:
        run_loop(run)
    finally:
        run.work.close()
    return run


def resume(folder: Path, name: str, /, **parts) -> Run:
    run = make_run(folder, **parts)
    path = folder / name
    meta = read_meta(run.strategy, path)
    check_spec(run.spec, meta, path)
    restore(run, path, meta)
    return run


def weights(run: Run) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ({"every": 5, "keep": 2}, ["iter_10.pth", "iter_12.pth"]),
        ({"every": 4, "keep": None}, ["iter_12.pth", "iter_4.pth", "iter_8.pth"]),
        ({"every": None}, ["iter_12.pth"]),
        ({"every": 5, "last": False}, ["iter_10.pth", "iter_5.pth"]),
        ({"every": 1, "by_epoch": True, "keep": 1}, ["epoch_2.pth"]),
        ({"every": 1, "by_epoch": True, "keep": None}, ["epoch_1.pth", "epoch_2.pth"]),
    ],
)
def test_cadence_and_keep(tmp_path, checkpoint, expected):
    run = finish(make_run(tmp_path, loop={"epochs": 2}, checkpoint=checkpoint))
    assert run.num_iters == 12
    assert files(tmp_path) == expected
    assert find_last(tmp_path) == tmp_path / run.kept[-1]
    assert read_run(tmp_path).last_checkpoint == run.kept[-1]


def test_part_of_an_epoch_and_forgotten_files(tmp_path):
    (tmp_path / "iter_1.pth").write_text("of another run")
    run = finish(make_run(tmp_path, loop={"epochs": 1.5}, checkpoint={"every": 1, "by_epoch": True, "keep": 1}))
    assert run.num_iters == 9
    assert files(tmp_path) == ["epoch_2.pth", "iter_1.pth"]  # files of others are not ours to delete


def test_content_of_a_checkpoint(tmp_path):
    finish(make_run(tmp_path, loop={"epochs": 2}, checkpoint={"every": 5, "keep": None}, seed=11))
    state = load_state(tmp_path / "iter_10.pth")
    assert sorted(state) == ["message_hub", "meta", "optimizer", "param_schedulers", "state_dict"]
    meta = state["meta"]
    assert (meta["iter"], meta["epoch"], meta["seed"], meta["cfg"]) == (10, 1, 11, "# tiny\n")
    assert meta["experiment_name"].startswith("tiny_20")
    assert len(meta["time"]) == 15
    assert sorted(state["message_hub"]) == ["log_scalars", "resumed_keys", "runtime_info"]
    assert sorted(state["state_dict"]) == sorted(f"llm.{name}" for name, _ in TinyModel().named_parameters())
    finish(make_run(tmp_path / "b", checkpoint={"every": 5, "optimizer": False}))
    assert "optimizer" not in load_state(tmp_path / "b" / "iter_5.pth")


PARTS = {
    "loop": {"epochs": 3, "accumulate": 4, "log_every": 3},
    "checkpoint": {"every": 5, "keep": None},
    "optim": {"lr": 0.05},
}


@pytest.mark.parametrize("name", ["adamw", "paged_adamw", "adamw_8bit", "sgd"])
@pytest.mark.parametrize("checkpoint", ["iter_5.pth", "iter_10.pth", "iter_15.pth", "iter_8.pth"])
def test_save_stop_resume_is_never_having_stopped(tmp_path, name, checkpoint):
    """Bit for bit: losses, learning rates, weights, optimiser. 5, 10, 15 lie inside an accumulation of 4, 8 between."""
    parts = {**PARTS, "optim": {"lr": 0.05, "name": name}}
    if checkpoint == "iter_8.pth":
        parts["checkpoint"] = {"every": 8, "keep": None}
    whole = finish(make_run(tmp_path / "a", **parts))
    again = resume(tmp_path / "a", checkpoint, **parts)
    number = int(checkpoint[5:-4])
    assert again.iteration == number - number % 4
    torch.rand(100)
    finish(again)
    assert torch.equal(weights(whole), weights(again))
    names = ("iter", "lr", "loss", "grad_norm")
    expected = [line for line in read_scalars(whole, *names) if line[0] > number - number % 4]
    assert read_scalars(again, *names) == expected
    last = tmp_path / "a" / f"iter_{whole.num_iters}.pth"
    optimizer = load_state(last)["optimizer"]
    assert [entry["step"] for entry in optimizer["state"].values() if "step" in entry][:1] in ([5], [])


def test_longer_after_a_resume(tmp_path):
    """More epochs than planned are a changed schedule, which is allowed and said."""
    finish(make_run(tmp_path, **PARTS))
    longer = resume(tmp_path, "iter_18.pth", **{**PARTS, "loop": {**PARTS["loop"], "epochs": 4}})
    finish(longer)
    assert longer.iteration == 24
    assert "loop.epochs was 3.0, is 4.0" in longer.work.log.read_text()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": {"train": "y.json"}}, "data.train"),
        ({"data": {"train": "x.json", "max_length": 7}}, "data.max_length: 2048 then, 7 now"),
        ({"model": {"path": "other"}}, "model.path: 'tiny' then, 'other' now"),
        ({"optim": {"name": "sgd"}}, "optim.name"),
        ({"loop": {**PARTS["loop"], "batch_size": 2}}, "loop.batch_size"),
    ],
)
def test_another_run_is_refused(tmp_path, change, named):
    finish(make_run(tmp_path, **PARTS))
    with pytest.raises(UserError, match=r"not the run that iter_5\.pth belongs to") as caught:
        resume(tmp_path, "iter_5.pth", **{**PARTS, **change})
    assert named in str(caught.value)


def test_a_run_goes_on_with_less_memory(tmp_path):
    model = {"path": "tiny", "lora": {}}
    finish(make_run(tmp_path, **{**PARTS, "model": model}))
    less = {"host_embedding": True, "recompute": "offload"}  # neither changes what is computed
    run = resume(tmp_path, "iter_5.pth", **{**PARTS, "model": {**model, **less}})
    run.work.close()
    assert run.iteration > 0


def test_foreign_or_weights_only_checkpoints_are_refused(tmp_path):
    run = finish(make_run(tmp_path, **PARTS))
    torch.save({"meta": {"iter": 3}, "state_dict": {}}, tmp_path / "old.pth")
    with pytest.raises(UserError, match="not written by this version"):
        read_meta(run.strategy, tmp_path / "old.pth")
    save_checkpoint(run, tmp_path / "bare.pth", optimizer=False)
    with pytest.raises(UserError, match="holds weights only"):
        resume(tmp_path, "bare.pth", **PARTS)


def test_finding_the_checkpoint_to_resume(tmp_path):
    assert find_checkpoint(None, tmp_path) is None
    assert find_checkpoint("auto", tmp_path) is None
    with pytest.raises(UserError, match="There is none in"):
        find_checkpoint("nowhere.pth", tmp_path)
    finish(make_run(tmp_path, **PARTS))
    assert find_checkpoint("auto", tmp_path) == tmp_path / "iter_18.pth"
    assert find_checkpoint(f"{tmp_path}/iter_5.pth:", tmp_path) == tmp_path / "iter_5.pth"
    with pytest.raises(UserError, match=r"last one in the work dir is .*iter_18\.pth"):
        find_checkpoint("nowhere.pth", tmp_path)


class SignalAt(Callback):
    """Sends a signal to this process when an iteration is over."""

    def __init__(self, iteration: int, number: int) -> None:
        self.iteration, self.number = iteration, number

    def after_iteration(self, run: Run) -> None:
        if run.iteration == self.iteration:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, code):
    whole = finish(make_run(tmp_path / "whole", **PARTS))
    run = make_run(tmp_path / "my runs", **PARTS)
    run.callbacks.append(SignalAt(7, number))
    with listen() as run.wish, pytest.raises(UserError) as caught:
        run_loop(run)
    assert caught.value.exit_code == code
    assert "iteration 7 of 18" in caught.value.what
    folder = tmp_path / "my runs"
    assert caught.value.fix == (
        f"To go on, type: {program()} train '{folder}/tiny.yaml' --work-dir '{folder}' --resume '{folder}/iter_7.pth'"
    )
    assert run.record.status == "stopped"
    again = finish(resume(folder, "iter_7.pth", **PARTS))
    assert torch.equal(weights(whole), weights(again))


class SlowTalk(World):
    """Ranks that are still talking when a signal comes: what they agree on was asked before it."""

    def __init__(self, run: Run, iteration: int) -> None:
        self.run, self.iteration = run, iteration

    def agree(self, number: int) -> int:
        if self.run.iteration == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)
            self.iteration = 0
        return number


def test_a_signal_that_comes_while_the_ranks_agree_is_not_lost(tmp_path):
    run = make_run(tmp_path, **PARTS)
    run.strategy.world = SlowTalk(run, 7)
    with listen() as run.wish, pytest.raises(UserError, match="Stopped by SIGTERM at iteration 8 of 18"):
        run_loop(run)


def test_a_signal_before_the_first_iteration_saves_nothing(tmp_path):
    run = make_run(tmp_path, **PARTS)
    run.wish.signal = signal.SIGINT
    with pytest.raises(UserError, match="before the first iteration"):
        run_loop(run)
    assert files(tmp_path) == []


class Broken(Next):
    """A loss that is no number from the n-th call on."""

    def __init__(self, call: int) -> None:
        self.left = call

    def __call__(self, model, batch):
        self.left -= 1
        loss = super().__call__(model, batch)
        return Loss(loss.total * (math.nan if self.left < 0 else 1.0), loss.weight)


def test_nan_names_the_batch_and_keeps_the_last_good_checkpoint(tmp_path):
    run = make_run(tmp_path, **PARTS)
    run.objective = Broken(9)
    with pytest.raises(UserError, match="loss became nan at iteration 10") as caught:
        finish(run)
    row = run.order.rows(9)[0]
    assert f"x.json, rows {2 * row + 1}, {2 * row + 2}" in str(caught.value)
    assert run.tokenizer.decode(list(run.data.train[row].input_ids)) in str(caught.value)
    assert "iter_5.pth" in str(caught.value)
    assert files(tmp_path) == ["iter_5.pth"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    run = finish(make_run(tmp_path, checkpoint={"every": None, "last": False}))
    with torch.no_grad():
        next(run.model.parameters())[0] = math.inf
    with pytest.raises(UserError, match="is not finite"):
        save_checkpoint(run, tmp_path / "iter_6.pth")
    assert files(tmp_path) == []


class Hungry(Next):
    """Asks for more memory than there is."""

    def __call__(self, model, batch):
        torch.empty(2**50)
        raise AssertionError("that much memory?")


def test_no_memory_says_what_to_change(tmp_path):
    run = make_run(tmp_path, loop={"batch_size": 2})
    run.objective = Hungry()
    with pytest.raises(UserError, match=r"memory ran out at iteration 1.*loop\.batch_size=1 loop\.accumulate=2"):
        finish(run)


def test_validation_is_weighted_and_disturbs_nothing(tmp_path):
    plain = finish(make_run(tmp_path / "a", loop={"epochs": 2}, checkpoint={"every": 5}))
    parts = {"loop": {"epochs": 2, "validate_every": 4, "batch_size": 1}, "checkpoint": {"every": 5}}
    run = finish(make_run(tmp_path / "b", validation=3, **parts))
    assert torch.equal(weights(plain), weights(run))
    found = read_scalars(run, "step", "val_loss")
    assert [step for step, _ in found] == [4, 8, 12]
    run.model.eval()
    total = weight = 0.0
    for row in range(3):
        loss = Next()(run.model, collate([run.data.train[row]], [row]))
        total, weight = total + float(loss.total.detach()), weight + float(loss.weight)
    assert found[-1][1] == pytest.approx(total / weight, rel=1e-6)
    at_checkpoints = finish(make_run(tmp_path / "c", validation=3, checkpoint={"every": 5}))
    assert [step for step, _ in read_scalars(at_checkpoints, "step", "val_loss")] == [5, 6]


def test_a_wish_to_stop_does_not_wait_for_the_end_of_a_validation(tmp_path):
    """It may take longer than a scheduler waits."""
    run = make_run(tmp_path, validation=6, checkpoint={"every": 4}, loop={"epochs": 2})
    seen = []

    class Slow(Next):
        def __call__(self, model, batch):
            if not model.training:
                seen.append(1)
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(model, batch)

    run.objective = Slow()
    with listen() as run.wish, pytest.raises(UserError, match="Stopped by SIGTERM at iteration 4 of 12; it is saved"):
        run_loop(run)
    assert len(seen) == 1
    assert "val_loss" not in run.work.log.read_text()
    assert not (run.work.visual / "scalars.json").exists()


def test_log_says_what_is_learned_and_how_it_goes(tmp_path):
    run = finish(make_run(tmp_path, loop={"epochs": 2, "log_every": 5}))
    log = run.work.log.read_text()
    assert "Num train samples 6" in log
    first = run.data.train[0]
    assert f"train example:\n{run.tokenizer.decode(list(first.input_ids[: first.lengths[0]]))}\n" in log
    for iteration in (" 5", "10", "12"):
        assert f"Iter(train) [{iteration}/12]  lr: " in log
    keys = {"lr", "data_time", "loss", "time", "grad_norm", "iter", "memory", "step"}
    assert read_scalars(run, *keys)
    assert len(read_scalars(run, "loss")) == 3


def test_a_live_bar_leaves_the_lines_to_the_file(tmp_path, capsys, caplog):
    run = make_run(tmp_path, loop={"epochs": 2, "log_every": 5})
    run.callbacks[1] = ProgressLog(live=True)
    finish(run)
    assert "Iter(train) [ 5/12]" in run.work.log.read_text()
    assert "Iter(train)" not in caplog.text
    shown = capsys.readouterr().out
    assert "12/12 loss " in shown
    assert " tokens/s " in shown


def test_accumulating_longer_than_the_run(tmp_path):
    run = finish(make_run(tmp_path, loop={"accumulate": 100, "max_iters": 4}))
    assert run.border == 4
    assert not torch.equal(weights(run), weights(make_run(tmp_path / "b")))
