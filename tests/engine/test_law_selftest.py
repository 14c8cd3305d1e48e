"""The laws that `xtuner selftest` measures: they hold, and each is broken by what it is there to find."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xtuner.cli.main import main
from xtuner.config.spec import RunSpec
from xtuner.dataset.batch import Batch
from xtuner.engine.loop import run_loop
from xtuner.engine.run import Run
from xtuner.engine.selftest import suite
from xtuner.engine.selftest.fast_path import measure_fast_path
from xtuner.engine.selftest.measure import Measured, bare_spec, worst
from xtuner.engine.selftest.packing import measure_packing
from xtuner.engine.selftest.resuming import measure_resuming
from xtuner.engine.selftest.suite import measure_laws
from xtuner.engine.selftest.trajectory import measure_trajectory
from xtuner.objective.loss import Loss
from xtuner.objective.sft import SFT
from xtuner.ops.attention import packed_attention
from xtuner.ops.lora_linear import AdaptedLayer, lora_linear
from xtuner.ops.packing import Packing

MODEL = Path(__file__).parent.parent / "golden" / "internlm2"
ROWS = [{"conversation": [{"input": f"What is {i}?", "output": f"{i} is a number. " * (i % 4 + 1)}]} for i in range(40)]
Law = Callable[[RunSpec, Path], Iterator[tuple[str, Measured | None]]]


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    (tmp_path / "data.json").write_text(json.dumps(ROWS))
    values = {
        "model": {"path": str(MODEL), "lora": {"r": 4}},
        "data": {
            "train": str(tmp_path / "data.json"),
            "template": "internlm2_chat",
            "max_length": 64,
            "cache": str(tmp_path / "cache"),
        },
        "optim": {"lr": 1e-3},
    }
    return bare_spec(RunSpec.model_validate(values))


def measured(law: Law, spec: RunSpec, folder: Path, **options: Any) -> list[Measured]:
    return [found for _, found in law(spec, folder / "runs", **options) if found is not None]


def test_all_laws_hold_over_twenty_iterations(spec: RunSpec, tmp_path: Path) -> None:
    found = [result for _, result in measure_laws(spec, tmp_path / "runs") if result is not None]
    assert [result for result in found if isinstance(result, str) or not result.holds] == []
    counts = {law: sum(result.law == law for result in found) for law in dict.fromkeys(result.law for result in found)}
    assert counts == {"one trajectory": 8, "save and resume": 2, "packed equals alone": 1, "fast equals plain": 7}
    assert all(result.difference <= 1e-6 for result in found if result.law == "one trajectory"), found
    assert all(result.difference == 0 for result in found if result.law == "save and resume")


def test_a_mean_of_means_breaks_the_trajectory(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Means(SFT):
        def __call__(self, model: torch.nn.Module, batch: Batch) -> Loss:
            loss = super().__call__(model, batch)
            return replace(loss, total=loss.total / loss.weight)

    monkeypatch.setattr("xtuner.objective.sft.SFT", Means)
    found = measured(measure_trajectory, spec, tmp_path, steps=4)
    assert [result.holds for result in found] == [False] * 4


def test_what_a_checkpoint_forgets_breaks_the_resume(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(run: Run) -> None:
        for state in run.strategy.optimizer.state.values():
            state["exp_avg"].zero_()
        run_loop(run)

    monkeypatch.setattr("xtuner.engine.selftest.resuming.run_loop", forgetful)
    found = measured(measure_resuming, spec, tmp_path)
    assert [result.holds for result in found] == [False, False]
    assert 0 < found[1].difference < 1


def leaking(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, **options: Any) -> Tensor:
    one = Packing.from_lengths([query.shape[2]])
    return packed_attention(query, key, value, one.cu_seqlens, one.max_seqlen, **options)


def test_a_leak_between_samples_breaks_packing_and_attention(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtuner.model.attention.packed_attention", leaking)
    monkeypatch.setattr("xtuner.model.load.check_packing", lambda model: None)  # which would refuse the model
    [found] = measured(measure_packing, spec, tmp_path)
    assert not found.holds
    monkeypatch.undo()
    monkeypatch.setattr("xtuner.engine.selftest.fast_path.packed_attention", leaking)
    found_fast = measured(measure_fast_path, spec, tmp_path / "fast")
    assert [result.what for result in found_fast if not result.holds] == ["attention over 2 samples"]


def test_a_fast_layer_that_is_off_is_found(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(inputs: Tensor, layers: list[AdaptedLayer], **options: Any) -> tuple[Tensor, ...]:
        return lora_linear(inputs, [replace(layer, scaling=1.01 * layer.scaling) for layer in layers], **options)

    for room in ("lora_layer", "shared_input"):
        monkeypatch.setattr(f"xtuner.model.{room}.lora_linear", off)
    found = measured(measure_fast_path, spec, tmp_path)
    assert {result.what.split()[0] for result in found if not result.holds} == {"adapted"}


def test_no_number_holds_nothing() -> None:
    assert math.isnan(worst([math.nan, 1.0], [1.0, 1.0]))
    assert not Measured("", "", math.nan, 1.0).holds
    assert worst([1.0], [1.0, 2.0]) == math.inf


RESULTS: list[tuple[str, Any]] = [
    ("begin", None),
    ("", Measured("one trajectory", "one pack at a time", 2e-7, 1e-6)),
    ("", "Not measured: all weights (this takes about 160 GiB of memory, 20 are free)."),
    ("", Measured("save and resume", "losses", 0.25, 0.0)),
]


@pytest.mark.parametrize(("results", "code"), [(RESULTS[:3], 0), (RESULTS, 1)])
def test_the_table(
    results: list[Any], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunSpec] = []

    def measure(spec: RunSpec, folder: Path) -> list[Any]:
        seen.append(spec)
        return results

    monkeypatch.setattr(suite, "measure_laws", measure)
    assert main(["selftest", "loop.precision=float32", "data.max_length=32"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["LAW", "MEASURED", "DIFFERENCE", "ALLOWED"]
    assert lines[2].split() == ["one", "trajectory", "one", "pack", "at", "a", "time", "2e-07", "1e-06", "pass"]
    assert lines[3].startswith("Not measured: all weights")
    assert (lines[-1].startswith("1 broken")) == bool(code)
    assert any(line.endswith("FAIL") for line in lines) == bool(code)
    assert (seen[0].loop.precision, seen[0].data.max_length, seen[0].data.template) == ("float32", 32, "internlm2_chat")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["word"], "word is no setting"), (["data.max_lenght=3"], "max_length"), (["--template", "x"], "x")],
)
def test_wrong_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", *words]) != 0
    assert message in capsys.readouterr().err
