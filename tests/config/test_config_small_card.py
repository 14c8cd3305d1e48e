"""Settings of small cards and of FP8 that go together, and those that do not."""

import pytest

from xtuner.config.check import to_spec
from xtuner.errors import UserError

LORA = {"r": 4}


def spec_of(model, **parts):
    return to_spec({"model": {"path": "m", **model}, "data": {"train": "rows.json"}, **parts})


def test_they_go_together():
    model = {"lora": LORA, "quant": {"bits": 4, "head": True}, "host_embedding": True}
    assert spec_of(model, strategy={"name": "ddp"}).model.quant.head
    assert spec_of({"lora": LORA, "quant": {"bits": 8, "type": "fp8"}}).model.quant.max_loss_change == 0.05


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"lora": LORA, "quant": {"bits": 8, "head": True}}, "model.quant.head has no effect at 8 bits"),
        ({"lora": LORA, "quant": {"bits": 8, "type": "fp8", "head": True}}, "model.quant.head has no effect with fp8"),
        ({"lora": LORA, "quant": {"bits": 8, "resident": True}}, "model.quant.resident has no effect at 8 bits"),
        ({"lora": LORA, "quant": {"bits": 4, "max_loss_change": 1}}, "max_loss_change has no effect at 4 bits"),
        ({"lora": LORA, "quant": {"bits": 8, "max_loss_change": 1}}, "max_loss_change has no effect at 8 bits"),
        ({"host_embedding": True}, "host_embedding has no effect without model.lora"),
    ],
)
def test_settings_without_effect_are_refused(model, said):
    with pytest.raises(UserError, match=said):
        spec_of(model)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_strategies_that_spread_the_embedding(strategy):
    with pytest.raises(UserError, match=f"strategy={strategy} spreads the embedding"):
        spec_of({"lora": LORA, "host_embedding": True}, strategy={"name": strategy})


def test_a_strategy_that_puts_one_layer_together_at_a_time():
    with pytest.raises(UserError, match="offload_groups calls several at once") as caught:
        spec_of({"lora": LORA, "recompute": "offload_groups"}, strategy={"name": "fsdp"})
    assert caught.value.fix == "Set model.recompute=offload_layers, or strategy=ddp."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optim": {"betas": [0.9, 1.0]}}, "optim.betas.1 is 1.0; it should be less than 1"),
        ({"optim": {"eps": 0}}, "optim.eps is 0; it should be greater than 0"),
        ({"model": {"path": "m", "recompute": 0}}, "model.recompute is 0; it should be 1 or more where it is a number"),
        ({"model": {"path": "m", "lora": {"rank_pattern": {"wo": 0}}}}, "rank_pattern.wo is 0; it should be greater"),
    ],
)
def test_numbers_that_no_optimiser_or_layer_takes_are_refused_at_once(change, said):
    with pytest.raises(UserError, match=said):
        to_spec({"model": {"path": "m"}, "data": {"train": "a.json"}, **change})
