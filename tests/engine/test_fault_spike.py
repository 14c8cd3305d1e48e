"""Spikes: a step that is far beyond the last ones is left out, the same one after a resume, and its rows are named."""

import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from engine_fakes import Next, make_run, read_scalars
from torch import nn

from xtuner.cli.main import main
from xtuner.config.spec import RunSpec
from xtuner.dataset.batch import Batch
from xtuner.engine.loop import run_loop
from xtuner.engine.resume import read_meta, restore
from xtuner.engine.run import Run
from xtuner.engine.spike import IN_A_ROW, LEAST, SpikeGuard
from xtuner.errors import UserError
from xtuner.objective.loss import Loss

PARTS = {
    "loop": {"max_iters": 60, "accumulate": 2, "log_every": 4, "skip_spikes": True},
    "checkpoint": {"every": None, "last": False},
}
EVERY = {"every": 1, "keep": None}


@dataclass
class Bad(Next):
    """A loss that is so many times too large at some iterations (counted from 0)."""

    factors: dict[int, float]
    run: Run

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        loss = super().__call__(model, batch)
        return Loss(loss.total * self.factors.get(self.run.iteration, 1.0), loss.weight)


def make(folder: Path, factors: dict[int, float], *, resume: str | None = None, **parts) -> Run:
    run = make_run(folder, **{**PARTS, **parts})
    run.objective = Bad(factors, run)
    if resume:
        restore(run, folder / resume, read_meta(run.strategy, folder / resume))
    try:
        run_loop(run)
    finally:
        run.work.close()
    return run


def weights(run: Run) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


def test_steps_far_beyond_are_left_out_and_their_rows_are_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = make(tmp_path, {41: 1e4, 51: math.nan})
    said = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    rows = [row for iteration in (40, 41) for row in run.order.rows(iteration)]
    named = "; ".join(f"x.json, rows {2 * row + 1}, {2 * row + 2}" for row in rows)
    assert re.fullmatch(
        r"The step of iterations 41 to 42 is left out: the loss is [\d.e+]+ \(lately [\d.]+\) and the gradient norm "
        rf"is [\d.e+]+ \(lately [\d.]+\)\. Its rows: {named}\.",
        said[0],
    )
    assert said[1].startswith("The step of iterations 51 to 52 is left out: the loss is nan")
    assert len(said) == 2
    assert run.spikes.skipped == 2
    losses = read_scalars(run, "loss", "iter")
    assert max(loss for loss, _ in losses) < 4, "what was left out is in no average"
    assert [iteration for _, iteration in losses] == list(range(4, 61, 4))


def test_the_weights_stay_as_they_were(tmp_path):
    make(tmp_path, {41: 1e4}, checkpoint={"every": 2, "keep": None})
    states = [torch.load(tmp_path / f"iter_{n}.pth", weights_only=True) for n in (40, 42, 44)]
    for find in (lambda state: state["state_dict"], lambda state: state["optimizer"]["state"]):
        assert str(find(states[0])) == str(find(states[1])) != str(find(states[2]))


def test_a_resumed_run_leaves_out_the_same_steps(tmp_path):
    factors = {21: 1e4, 41: 1e4, 45: math.inf, 51: 30.0}
    whole = make(tmp_path, factors, checkpoint=EVERY)
    assert whole.spikes.skipped == 3, "the first came before there was anything to compare with"
    for number in (39, 41, 42, 43, 50):
        again = make(tmp_path, factors, resume=f"iter_{number}.pth")
        assert torch.equal(weights(whole), weights(again)), number
        assert again.spikes.state() == whole.spikes.state(), number


def test_many_in_a_row_end_the_run(tmp_path):
    with pytest.raises(
        UserError, match=rf"^{IN_A_ROW} steps in a row were left out, at last iterations 49 to 50: "
    ) as caught:
        make(tmp_path, dict.fromkeys(range(40, 60), 1e5), checkpoint={"every": 20})
    assert "The last rows: x.json, rows " in caught.value.what
    assert "smaller optim.lr" in caught.value.fix
    assert "--resume" in caught.value.fix


def test_without_the_switch_nothing_is_left_out(tmp_path):
    loop = {**PARTS["loop"], "skip_spikes": False}
    run = make(tmp_path / "large", {41: 1e4}, loop=loop)
    assert run.spikes is None
    assert max(loss for (loss,) in read_scalars(run, "loss")) > 1000
    with pytest.raises(UserError, match="add --skip-spikes"):
        make(tmp_path / "nan", {41: math.nan}, loop=loop)


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_the_norm_alone_can_be_the_reason(tmp_path, max_norm, caplog):
    """Also where nothing is clipped, so that nobody else measures it."""

    class Steep(Bad):
        def __call__(self, model: nn.Module, batch: Batch) -> Loss:
            loss = Next.__call__(self, model, batch)
            push = self.factors.get(self.run.iteration, 0.0) * loss.total
            return Loss(loss.total + push - push.detach(), loss.weight)

    run = make_run(tmp_path, **PARTS, optim={"max_norm": max_norm})
    run.objective = Steep({41: 1e4}, run)
    run_loop(run)
    run.work.close()
    assert re.search(r"left out: the gradient norm is .* \(lately", caplog.text)
    assert run.spikes.skipped == 1


def test_judgement_by_the_last_steps():
    guard = SpikeGuard()
    noise = torch.rand(200, generator=torch.Generator().manual_seed(0)).tolist()
    assert not any(guard.judge(3.0 - n / 100 + x, 1.0 + x) for n, x in enumerate(noise)), "an ordinary run"
    assert guard.judge(30.0, 1.0).startswith("the loss is 30 (lately 1.")
    assert guard.judge(1.5, 40.0).startswith("the gradient norm is 40 (lately 1.")
    assert guard.in_a_row == 2
    assert guard.judge(1.5, None) is None
    assert guard.in_a_row == 0
    fresh = SpikeGuard()
    assert all(fresh.judge(10.0**n, 1.0) is None for n in range(LEAST)), "nothing to compare with yet"
    assert fresh.judge(math.nan, 1.0) == "the loss is nan"
    other = SpikeGuard()
    other.load_state(json.loads(json.dumps(fresh.state())))
    assert other.state() == fresh.state()


@pytest.mark.parametrize("words", [[], ["--skip-spikes"]])
def test_the_switch_is_a_setting(tmp_path, monkeypatch, words):
    seen: list[RunSpec] = []
    monkeypatch.setattr("xtuner.engine.train.train", lambda spec, **options: seen.append(spec))
    (tmp_path / "data.json").write_text("[]")
    model = Path(__file__).parent.parent / "golden" / "internlm2"
    assert main(["train", "--model", str(model), "--data", str(tmp_path / "data.json"), *words]) == 0
    assert seen[0].loop.skip_spikes == bool(words)
