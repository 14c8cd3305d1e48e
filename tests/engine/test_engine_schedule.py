"""The learning rate: equal to the chained schedulers of 0.1.x, which work recursively."""

import json
import math

import pytest

from xtuner.config.spec import ScheduleSpec
from xtuner.engine.schedule import WarmedUp, build_schedule


def chained(peak, num_iters, warmup, start, minimum):
    """LinearLR(begin=0, end=warmup), then CosineAnnealingLR(begin=warmup, end=num_iters), as mmengine steps them:
    each value is made from the one before."""
    lr, values = peak, []
    for iteration in range(num_iters):
        if iteration < warmup:
            step, steps = iteration, warmup - 1
            if step == 0:
                lr *= start
            else:
                lr *= 1 + (1 - start) / (steps * start + (step - 1) * (1 - start))
        else:
            step, steps = iteration - warmup, num_iters - warmup
            if step > 0:
                before, now = (1 + math.cos(math.pi * k / steps) for k in (step - 1, step))
                lr = now / before * (lr - minimum) + minimum
        values.append(lr)
    return values


@pytest.mark.parametrize(("num_iters", "warmup", "minimum"), [(384, 0.03, 0.0), (2624, 0.03, 1e-6), (50, 0.1, 0.0)])
def test_equals_the_chained_schedulers_of_01x(num_iters, warmup, minimum):
    schedule = build_schedule(ScheduleSpec(warmup=warmup, min_lr=minimum), 2e-4, num_iters)
    expected = chained(2e-4, num_iters, int(warmup * num_iters), 1e-5, minimum)
    assert [schedule.lr(i) for i in range(num_iters)] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_by_hand():
    # 10 iterations, 2 of warm-up: 1e-5 * peak, peak, then 8 of cosine from the peak
    schedule = build_schedule(ScheduleSpec(warmup=0.2), 1.0, 10)
    assert schedule.lr(0) == pytest.approx(1e-5)
    assert schedule.lr(1) == schedule.lr(2) == pytest.approx(1.0)
    assert schedule.lr(6) == pytest.approx(0.5)
    assert schedule.lr(9) == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)
    assert schedule.lr(10) == schedule.lr(11) == 0.0


def test_linear_and_constant():
    linear = WarmedUp("linear", 1.0, 11, min_lr=0.5)
    assert [linear.lr(i) for i in (0, 5, 10)] == pytest.approx([1.0, 0.75, 0.5])
    constant = WarmedUp("constant", 1.0, 10, warmup=2, start_factor=0.0)
    assert [constant.lr(i) for i in (0, 1, 9)] == [0.0, 1.0, 1.0]


def test_short_runs_have_no_warm_up_or_one_iteration():
    assert build_schedule(ScheduleSpec(warmup=0.03), 1.0, 10).lr(0) == 1.0
    one = build_schedule(ScheduleSpec(warmup=0.1), 1.0, 10)
    assert (one.lr(0), one.lr(1)) == (pytest.approx(1e-5), 1.0)
    assert build_schedule(ScheduleSpec(), 1.0, 1).lr(0) == 1.0


def test_warm_up_share_is_not_lost_to_rounding():
    assert build_schedule(ScheduleSpec(warmup=0.29), 1.0, 100).warmup == 29  # 0.29 * 100 is 28.999...


def chain(num_iters, *steps, peak=1.0, epoch=10):
    spec = ScheduleSpec.model_validate({"chain": list(steps)})
    schedule = build_schedule(spec, peak, num_iters, epoch)
    return [schedule.lr(iteration) for iteration in range(num_iters)]


def linear(steps, start=0.1):
    return [start + (1 - start) * step / (steps - 1) for step in range(steps)]


def cosine(steps, period=None):
    return [(1 + math.cos(math.pi * step / (period or steps))) / 2 for step in range(steps)]


def test_a_chain_of_neighbours_is_a_warm_up_and_a_fall():
    steps = [{"name": "linear", "start_factor": 1e-5, "end": 12}, {"name": "cosine", "begin": 12, "min_lr": 1e-5}]
    assert chain(400, *steps, peak=2e-4) == pytest.approx(chained(2e-4, 400, 12, 1e-5, 1e-5), rel=1e-9)
    usual = build_schedule(ScheduleSpec(warmup_iters=12, min_lr=1e-5), 2e-4, 400)
    assert chain(400, *steps, peak=2e-4) == pytest.approx([usual.lr(i) for i in range(400)], rel=1e-6, abs=1e-12)


def test_a_warm_up_in_iterations_before_a_cosine_in_epochs():
    warm = {"name": "linear", "start_factor": 0.1, "end": 5}
    # the cosine begins with the second epoch: between the two the rate stays
    later = chain(40, warm, {"name": "cosine", "unit": "epochs", "begin": 1, "end": 4})
    assert later == pytest.approx([*linear(5), *[1.0] * 5, *cosine(30)])
    # both begin at once: the rate is the product
    both = chain(40, warm, {"name": "cosine", "unit": "epochs", "end": 4})
    factors = [*linear(5), *[1.0] * 35]
    assert both == pytest.approx([a * b for a, b in zip(factors, cosine(40), strict=True)])
    # with a floor each makes its number of the one before
    floor = chain(3, {**warm, "end": 3}, {"name": "cosine", "min_lr": 0.05, "end": 4}, peak=1.0)
    first = 0.1
    second = cosine(4)[1] * (first * 5.5 - 0.05) + 0.05
    third = cosine(4)[2] / cosine(4)[1] * (second * 1.0 / 0.55 - 0.05) + 0.05
    assert floor == pytest.approx([first, second, third])


def test_what_ends_early_late_or_comes_back():
    early = chain(40, {"name": "cosine", "unit": "epochs", "end": 2, "min_lr": 0.25})
    assert early[:20] == pytest.approx([0.25 + 0.75 * value for value in cosine(20)])
    assert early[20:] == [early[19]] * 20
    late = chain(10, {"name": "cosine", "unit": "epochs", "end": 3})
    assert late == pytest.approx(cosine(30)[:10])
    # T_max shorter than the stretch: down and up again
    wave = chain(24, {"name": "cosine", "period": 8, "end": 24})
    assert wave[8] == pytest.approx(0.0)
    assert wave[16] == pytest.approx(1.0)
    assert wave == pytest.approx(cosine(24, period=8), abs=1e-9)


def test_steps_of_an_epoch_and_constant_parts():
    stairs = chain(30, {"name": "cosine", "unit": "epochs", "each_epoch": True, "end": 3})
    assert stairs == pytest.approx([value for value in cosine(3) for _ in range(10)])
    held = chain(20, {"name": "constant", "start_factor": 0.5, "end": 8})
    assert held == [0.5] * 7 + [1.0] * 13
    flash = chain(4, {"name": "linear", "start_factor": 0.1, "end": 1}, {"name": "cosine", "begin": 1})
    assert flash == pytest.approx([0.1, *cosine(3)])


def test_a_chain_is_described_in_plain_values():
    steps = {"name": "cosine", "unit": "epochs", "end": 3}
    described = build_schedule(ScheduleSpec.model_validate({"chain": [steps]}), 1.0, 30, 10).describe()
    assert json.loads(json.dumps(described)) == described
    with pytest.raises(ValueError, match="has no effect"):
        ScheduleSpec.model_validate({"chain": [steps], "warmup": 0.5})
    with pytest.raises(ValueError, match="has no effect"):
        ScheduleSpec.model_validate({"chain": [{"name": "linear", "min_lr": 0.1}]})
