"""The best state: kept beside the checkpoints, found again by a resumed run, refused where nothing is measured."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from engine_fakes import make_run

from xtuner.checkpoint.state import find_last, load_state, load_weights
from xtuner.config.spec import RunSpec
from xtuner.engine.callbacks.best import KeepBest, best_rule, check_best
from xtuner.engine.callbacks.validation import Validation
from xtuner.engine.loop import run_loop
from xtuner.engine.resume import read_meta, restore
from xtuner.engine.run import Callback, Run
from xtuner.errors import UserError


class Scores(Callback):
    """Measures what it was told, at the iterations it was told."""

    def __init__(self, values: Mapping[int, float], name: str = "val_loss") -> None:
        self.values = values
        self.measures = (name,)

    def after_iteration(self, run: Run) -> None:
        if run.iteration in self.values:
            for callback in run.callbacks:
                callback.after_validation(run, {self.measures[0]: self.values[run.iteration]})


def train(
    folder: Path, scores: Scores, *, iters: int = 12, resume: str = "", best: str = "auto", **checkpoint: object
) -> Run:
    run = make_run(folder, loop={"max_iters": iters}, checkpoint={"every": 6, "keep": 1, "best": best, **checkpoint})
    if resume:
        restore(run, folder / resume, read_meta(run.strategy, folder / resume))
    run.callbacks += [scores, KeepBest()]
    try:
        run_loop(run)
    finally:
        run.work.close()
    return run


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pth"))


@pytest.mark.parametrize(
    ("checkpoint", "name", "expected"),
    [
        ({}, "val_loss", "best_val_loss_iter_4.pth"),
        ({"best": "val_loss"}, "val_loss", "best_val_loss_iter_4.pth"),
        ({"best_rule": "greater"}, "val_loss", "best_val_loss_iter_6.pth"),
        ({}, "mmlu/acc", "best_mmlu_acc_iter_6.pth"),
        ({"best_rule": "less"}, "mmlu/acc", "best_mmlu_acc_iter_4.pth"),
        ({"by_epoch": True, "every": 1}, "val_loss", "best_val_loss_epoch_1.pth"),
    ],
)
def test_the_best_is_kept_by_its_rule(tmp_path, checkpoint, name, expected):
    scores = Scores({2: 2.0, 4: 1.0, 5: math.nan, 6: 3.0, 8: 1.0, 10: 1.5}, name)
    train(tmp_path, scores, **checkpoint)
    last = "epoch_2.pth" if checkpoint.get("by_epoch") else "iter_12.pth"
    assert files(tmp_path) == [expected, last]
    assert find_last(tmp_path) == tmp_path / last
    meta = load_state(tmp_path / expected)["meta"]
    assert meta["best"] == {"name": name, "value": scores.values[meta["iter"]]}
    assert load_weights(tmp_path / expected)  # a state like any other: it can be converted and gone on from


def test_a_resumed_run_knows_the_best(tmp_path):
    train(tmp_path, Scores({2: 3.0, 6: 1.0}), iters=6)  # measured after iter_6.pth was written
    assert files(tmp_path) == ["best_val_loss_iter_6.pth", "iter_6.pth"]
    train(tmp_path, Scores({8: 2.0}), iters=9, resume="iter_6.pth")
    assert files(tmp_path) == ["best_val_loss_iter_6.pth", "iter_9.pth"]
    train(tmp_path, Scores({10: 0.5}), resume="iter_9.pth")
    assert files(tmp_path) == ["best_val_loss_iter_10.pth", "iter_12.pth"]


def test_what_lies_ahead_of_a_resumed_run_does_not_count(tmp_path):
    train(tmp_path, Scores({2: 3.0, 11: 0.5}), keep=None)
    train(tmp_path, Scores({8: 2.0}), resume="iter_6.pth", keep=None)
    assert "best_val_loss_iter_8.pth" in files(tmp_path)


def test_files_of_others_are_let_be(tmp_path):
    (tmp_path / "best_val_loss_iter_3.pth").write_bytes(b"of another program")
    train(tmp_path, Scores({2: 3.0}), iters=6)
    train(tmp_path, Scores({8: 2.0}), resume="iter_6.pth")
    assert (tmp_path / "best_val_loss_iter_3.pth").read_bytes() == b"of another program"
    assert "best_val_loss_iter_8.pth" in files(tmp_path)


def test_validation_hands_its_loss_to_callbacks(tmp_path):
    run = make_run(
        tmp_path,
        validation=3,
        loop={"max_iters": 8, "validate_every": 2},
        checkpoint={"every": None, "best": "val_loss"},
    )
    run.callbacks.append(KeepBest())
    try:
        run_loop(run)
    finally:
        run.work.close()
    (best,) = tmp_path.glob("best_val_loss_iter_*.pth")
    assert load_state(best)["meta"]["best"]["value"] > 0


def test_what_is_needed_is_said():
    def spec(best: str) -> RunSpec:
        return RunSpec.model_validate(
            {"model": {"path": "m"}, "data": {"train": "x.json"}, "checkpoint": {"best": best}}
        )

    def said(best: str, *callbacks: Callback) -> str:
        with pytest.raises(UserError) as caught:
            check_best(spec(best), callbacks)
        return str(caught.value)

    assert "nothing to validate on. Add data.validation=0.05" in said("auto").replace("\n", " ")
    assert "checkpoint.best is val_los, and nothing measures that" in said("val_los", Validation())
    check_best(spec("auto"), [Validation()])
    check_best(spec("mmlu"), [Scores({}, "mmlu")])
    assert [best_rule(name) for name in ("val_loss", "ppl", "mmlu", "acc")] == ["less", "less", "greater", "greater"]
