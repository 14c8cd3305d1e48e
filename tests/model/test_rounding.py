"""What rounding costs is what two whole passes show."""

import pytest
import tiny
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from xtuner.dataset.batch import IGNORE, Batch
from xtuner.model.fp8_linear import to_fp8
from xtuner.model.rounding import measure_rounding
from xtuner.ops.packing import Packing


def make_batch(learned=True):
    ids = torch.arange(5, 45)[None]
    labels = ids.roll(-1) if learned else torch.full_like(ids, IGNORE)
    labels[0, ::3] = IGNORE
    return Batch(ids, labels, torch.arange(40)[None], Packing.from_lengths([40]))


@pytest.fixture
def model(tmp_path):
    return AutoModelForCausalLM.from_pretrained(tiny.make_tiny_llama(tmp_path), dtype=torch.float32).eval()


def test_the_cost_of_fp8(model):
    batch = make_batch()
    with torch.no_grad():
        before = model(batch.input_ids).logits[0]
    cost = measure_rounding(model, batch, to_fp8)
    with torch.no_grad():
        after = model(batch.input_ids).logits[0]
    places = batch.labels[0] != IGNORE
    before, after, targets = before[places], after[places], batch.labels[0][places]
    assert cost.tokens == len(targets) == 26
    assert cost.loss_before == pytest.approx(float(functional.cross_entropy(before, targets)), abs=1e-6)
    assert cost.loss_after == pytest.approx(float(functional.cross_entropy(after, targets)), abs=1e-6)
    assert cost.loss_change != 0
    assert cost.mean_logit == pytest.approx(float((after - before).abs().mean()), rel=1e-4)
    assert cost.max_logit == pytest.approx(float((after - before).abs().max()), rel=1e-4)
    assert cost.changed == pytest.approx(float((after.argmax(-1) != before.argmax(-1)).float().mean()))
    said = cost.say("FP8")
    assert f"FP8 changes the loss of the first batch (26 tokens) by {cost.loss_change:+.4f}" in said


def test_no_change_costs_nothing(model):
    cost = measure_rounding(model, make_batch(), lambda same: None)
    assert (cost.loss_change, cost.mean_logit, cost.max_logit, cost.changed) == (0, 0, 0, 0)


def test_a_batch_without_targets_shows_logits(model):
    cost = measure_rounding(model, make_batch(learned=False), to_fp8)
    assert (cost.tokens, cost.loss_before, cost.loss_change) == (40, 0, 0)
    assert cost.mean_logit > 0
