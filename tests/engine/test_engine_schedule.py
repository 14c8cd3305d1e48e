"""The learning rate: equal to the chained schedulers of 0.1.x, which work recursively."""

import math

import pytest

from xtuner.config.spec import ScheduleSpec
from xtuner.engine.schedule import Schedule, build_schedule


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
    linear = Schedule("linear", 1.0, 11, min_lr=0.5)
    assert [linear.lr(i) for i in (0, 5, 10)] == pytest.approx([1.0, 0.75, 0.5])
    constant = Schedule("constant", 1.0, 10, warmup=2, start_factor=0.0)
    assert [constant.lr(i) for i in (0, 1, 9)] == [0.0, 1.0, 1.0]


def test_short_runs_have_no_warm_up_or_one_iteration():
    assert build_schedule(ScheduleSpec(warmup=0.03), 1.0, 10).lr(0) == 1.0
    one = build_schedule(ScheduleSpec(warmup=0.1), 1.0, 10)
    assert (one.lr(0), one.lr(1)) == (pytest.approx(1e-5), 1.0)
    assert build_schedule(ScheduleSpec(), 1.0, 1).lr(0) == 1.0


def test_warm_up_share_is_not_lost_to_rounding():
    assert build_schedule(ScheduleSpec(warmup=0.29), 1.0, 100).warmup == 29  # 0.29 * 100 is 28.999...
