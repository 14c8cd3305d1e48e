"""The benchmark commands at toy size on this machine, without opponents that are not installed."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import longest, startup, trainer, training
from benchmarks.cases import TABLES
from benchmarks.contender import our_spec, padded
from benchmarks.workload import SHAPES, Lap, chat_lengths, flops, micro_batches, packed, read_case


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "toy"
    training.make("toy", folder)
    return str(folder)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    for name, value in {"STEPS": 3, "WARM": 1, "CHAT_STEPS": 4, "CHAT_WARM": 1, "PACK": 4096}.items():
        monkeypatch.setattr(training, name, value)


def test_a_case_of_ours_has_a_row_for_each_size(toy):
    rows = list(training.run("xtuner:lora:toy:2x16,1x48:recompute=layers", toy))
    assert [row["case"] for row in rows] == [f"xtuner:lora:toy:{size}:recompute=layers" for size in ("2x16", "1x48")]
    for row in rows:
        assert row["tokens_per_second"] > 0
        assert row["predicted"]["tokens_per_second"] > 0
        assert row["recompute"] == "layers"
        assert row["losses"][0] == pytest.approx(np.log(SHAPES["toy"]["vocab_size"]), rel=0.02)
        assert row["versions"]["torch"] == torch.__version__


def test_a_plain_loop_pads_short_samples_and_counts_real_ones(toy):
    [row] = training.run("hf:lora:toy:chat2", toy)
    lengths = chat_lengths(8).reshape(4, 2)
    assert row["real_tokens"] == round(lengths.sum() / (2 * lengths.max(1)).sum(), 3)
    assert row["real_tokens"] < 1
    assert "predicted" not in row


def test_ours_packs_the_same_samples(toy):
    [row] = training.run("xtuner:lora:toy:chat2", toy)
    assert row["real_tokens"] == 1.0
    every = sorted(length for pack in packed("chat2", 100, 4096) for length in pack)
    assert every == sorted(length for micro in micro_batches("chat2", 100) for length in micro)


def test_the_longest_sample_is_trained_for_real(toy):
    [row] = training.run("xtuner:lora:toy:longest:short=32/64:most=64:tries=1:segment=32", toy)
    assert (row["longest"], row["plan"]) == (64, None)


def test_what_fails_is_a_row(toy):
    rows = list(training.run("xtuner:lora:toy:1x16,1x32:recompute=nonsense", toy))
    assert len(rows) == 1
    assert "recompute" in rows[0]["failed"]
    case = read_case("hf:lora:toy:1x16,1x32")
    late = list(training.attempt(case, Path(toy).parent, 0.0))
    assert [row["failed"] for row in late] == ["left out: no time"] * 2
    assert training.describe_row(late[0]) == "left out: no time"


def test_when_memory_runs_out_larger_sizes_are_not_tried(toy, monkeypatch):
    def refuse(case, contender, work):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(training, "race", refuse)
    rows = list(training.run("hf:lora:toy:1x16,1x32", toy))
    assert [row["failed"] for row in rows] == ["out of memory"] * 2


@pytest.mark.parametrize("text", [case for cases in TABLES.values() for case in cases])
def test_cases_of_the_tables_can_be_read(text):
    case = read_case(text)
    assert case.shape in SHAPES
    assert case.named(",".join(case.sizes)) == text
    if case.tool == "xtuner":
        assert our_spec(case, "nowhere").model.path == "nowhere"


def test_near_the_end_of_the_memory_both_sides_are_tried():
    def memory(bend):
        def try_length(tokens):
            peak = 6.0 + tokens * 1e-4 + (tokens > 200_000) * bend
            return peak if peak <= 30 else None

        return try_length

    straight = longest.approach(memory(0.0), 30.0, (8192, 16384), 2**21, tries=3)
    assert 0.97 * 240_000 <= straight["longest"] <= 240_000 < straight["refused"]
    bent = longest.approach(memory(2.0), 30.0, (8192, 16384), 2**21, tries=3)
    assert 0.9 * 220_000 <= bent["longest"] <= 220_000 < bent["refused"]
    assert longest.approach(memory(100.0), 6.9, (8192, 2**18), 2**21, tries=3)["longest"] == 8192


def test_segments_are_as_equal_as_can_be():
    assert longest.cut(10, 4) == [3, 3, 4]
    assert longest.cut(8, 8) == [8]


def test_chat_samples_have_a_long_tail():
    lengths = chat_lengths(100_000)
    assert lengths.mean() == pytest.approx(300, rel=0.03)
    assert (lengths > 1700).mean() == pytest.approx(0.01, abs=0.002)
    assert (chat_lengths(50) == chat_lengths(50)).all()


def test_arithmetic_of_a_token():
    """Llama 3 8B: 7.5 billion weights in products, 4 FLOP each where frozen; half of the attention is masked."""
    per_token = flops("llama3-8b", [4096], "lora") / 4096
    assert per_token == pytest.approx(4 * 7.504e9 + 3 * 2 * 4096 * 4096 * 32, rel=1e-3)
    assert flops("llama3-8b", [4096], "full") > 1.4 * flops("llama3-8b", [4096], "lora")
    assert flops("toy", [64, 64], "lora") < flops("toy", [128], "lora")


def test_padding_is_neither_read_nor_learned():
    inputs = padded([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert inputs["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert "attention_mask" not in padded([torch.tensor([5]), torch.tensor([8])])


def test_a_trainer_is_timed_from_step_to_step():
    class Plain:
        def training_step(self, model, inputs):
            return torch.tensor(2.5)

        def train(self):
            for mask in ([[1, 1], [1, 0]], [[1, 1], [1, 1]]):
                self.training_step(None, {"input_ids": torch.ones(2, 2), "attention_mask": torch.tensor(mask)})

    timed = trainer.timed(Plain)()
    timed.train()
    laps = timed.end()
    assert [(lap.tokens, lap.computed, lap.loss) for lap in laps] == [(3, 4, 2.5), (4, 4, 2.5)]
    assert all(lap.seconds >= 0 for lap in laps)
    assert all(later >= earlier for earlier, later in pairwise(timed.begun))


def test_figures_are_medians_after_warm_up():
    laps = [Lap(seconds, 100, 100, 1.0) for seconds in (9.0, 1.0, 0.5, 2.0)]
    assert training.figures(read_case("hf:lora:toy:1x100"), laps, [[100]] * 4)["tokens_per_second"] == 100


def test_phases_of_a_start():
    lines = [
        (0.3, "model:"),
        (4.0, "11/21 09:44:36 - xtuner - INFO - CPU"),
        (5.5, "11/21 09:44:37 - xtuner - INFO - Loading /models/x"),
        (9.0, "11/21 09:44:43 - xtuner - INFO - 3 iterations; 1,695,744 trained weights, adamw"),
        (10.0, "11/21 09:44:44 - xtuner - INFO - Sample output:"),
        (12.0, "11/21 09:44:44 - xtuner - INFO - Iter(train) [1/3]"),
        (12.5, "11/21 09:44:44 - xtuner - INFO - Iter(train) [2/3]"),
        (13.0, "11/21 09:44:45 - xtuner - INFO - Finished: /x"),
    ]
    found = startup.phases(lines)
    assert found["to_first_iteration"] == 12.0
    parts = ("python_and_libraries", "data_and_plan", "model", "answers_before", "first_iteration")
    assert [found[part] for part in parts] == [4.0, 1.5, 3.5, 1.0, 2.0]
    assert found["later_iteration"] == 0.5
