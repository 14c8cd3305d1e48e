"""Metrics: averages over targets, nan named, averages continued after a resume; the log line; signals; formats."""

import math
import os
import signal
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from engine_fakes import make_batch

from xtuner.config.spec import RunSpec
from xtuner.engine.callbacks.progress import log_line
from xtuner.engine.interrupt import listen
from xtuner.engine.memory import advise, checkpoint_bytes
from xtuner.engine.metrics import Metrics, NotFinite
from xtuner.engine.precision import choose_precision
from xtuner.engine.step import Micro
from xtuner.errors import is_out_of_memory
from xtuner.objective.loss import Loss

CPU = torch.device("cpu")


def make_micro(iteration, total, weight, *, norm=None, **metrics):
    values = {name: torch.tensor(value) for name, value in metrics.items()}
    loss = Loss(torch.tensor(total), torch.tensor(weight), values)
    batch = make_batch([[1, 2, 3]], rows=(iteration, iteration + 100))
    return Micro(iteration, batch, loss, norm is not None, None if norm is None else torch.tensor(norm))


def make_spec(**parts):
    return RunSpec.model_validate({"model": {"path": "m"}, "data": {"train": "d.json"}, **parts})


def test_averages_are_over_targets_of_the_window():
    metrics = Metrics(CPU, window=2, keep=4)
    for iteration, (total, weight) in enumerate([(100.0, 1), (30.0, 10), (1.0, 2)]):
        metrics.add(make_micro(iteration, total, weight, right=weight / 2))
    scalars = metrics.scalars()
    assert scalars["loss"] == pytest.approx(31 / 12)
    assert scalars["right"] == pytest.approx(0.5)
    assert "grad_norm" not in scalars
    assert scalars["memory"] > 10
    metrics.add(make_micro(3, 1.0, 1, norm=0.25))
    assert metrics.scalars()["grad_norm"] == 0.25


def test_state_continues_the_averages():
    one, other = Metrics(CPU, window=4, keep=2), Metrics(CPU, window=4, keep=2)
    for iteration in range(5):
        one.add(make_micro(iteration, iteration / 3, 3, norm=1.0))
    other.load_state(one.state(before=3))
    for iteration in (3, 4):
        other.add(make_micro(iteration, iteration / 3, 3, norm=1.0))
    assert other.scalars()["loss"] == one.scalars()["loss"]


@pytest.mark.parametrize(("bad", "what"), [({"total": math.nan}, "loss became nan"), ({"norm": math.inf}, "gradient")])
def test_not_finite_names_iteration_and_rows(bad, what):
    metrics = Metrics(CPU, window=10, keep=1)
    metrics.add(make_micro(0, 1.0, 1))
    with pytest.raises(NotFinite, match=rf"{what}.*iteration 2") as caught:
        metrics.add(make_micro(1, **{"total": 1.0, "weight": 1, **bad}))
    assert caught.value.rows == (1, 101)


def test_overflowing_gradient_is_normal_with_a_scaled_loss():
    metrics = Metrics(CPU, window=10, keep=1, check_norm=False)
    metrics.add(make_micro(0, 1.0, 1, norm=math.inf))
    assert metrics.scalars()["grad_norm"] == math.inf


def test_nothing_is_read_from_a_card_before_the_window_is_full():
    metrics = Metrics(torch.device("cuda"), window=3, keep=1)
    for iteration in range(2):
        metrics.add(make_micro(iteration, math.nan, 1))
    with pytest.raises(NotFinite, match="iteration 1"):
        metrics.add(make_micro(2, 1.0, 1))


def test_what_the_card_still_does_when_it_is_read_is_time_of_training(monkeypatch):
    """The host only queues work; without the wait the shown speed would be that of queueing."""

    now = [0.0]
    monkeypatch.setattr("xtuner.engine.metrics.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait(numbers):
        now[0] += 0.05
        return list(numbers)

    metrics = Metrics(torch.device("cuda"), window=2, keep=1, add_ranks=wait)
    for iteration in range(4):
        metrics.add(make_micro(iteration, 1.0, 1))
        metrics.restart_clock()  # as the loop does when the callbacks are done
    assert [entry.seconds for entry in metrics.entries] == [0.05, 0, 0.05][-len(metrics.entries) :]


def test_log_line_is_that_of_01x():
    scalars = {"lr": 2e-4, "data_time": 0.0123, "time": 1.2345, "memory": 4567.0, "loss": 1.2345, "grad_norm": 0.1234}
    assert log_line(10, 384, timedelta(minutes=10), scalars) == (
        "Iter(train) [ 10/384]  lr: 2.0000e-04  eta: 0:10:00  time: 1.2345  data_time: 0.0123  memory: 4567  "
        "loss: 1.2345  grad_norm: 0.1234"
    )


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_first_signal_is_a_wish_and_a_second_ctrl_c_acts(number, name, code):
    previous = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    fallen = []
    for each in previous:
        signal.signal(each, lambda *_: fallen.append(1))
    try:
        with listen() as wish:
            assert wish.signal is None
            for _ in range(3):  # a launcher passes it on, and a scheduler sends it to all
                os.kill(os.getpid(), number)
                assert (wish.name, wish.exit_code) == (name, code)
            assert fallen == ([1, 1] if number == signal.SIGINT else [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert wish.name == name
            os.kill(os.getpid(), signal.SIGINT)
            assert len(fallen) == (3 if number == signal.SIGINT else 1)
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def test_who_has_obeyed_is_not_ended_before_it_has_said_so():
    """A scheduler sends SIGTERM to a rank and to its launcher, which passes it on: the second comes at any moment."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with listen():
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with listen() as wish:
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGTERM)
    assert wish.name == "SIGTERM"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # Ctrl-C still acts


def test_the_end_of_the_terminal_is_a_wish_but_not_under_nohup():
    with listen() as wish:
        os.kill(os.getpid(), signal.SIGHUP)
    assert (wish.name, wish.exit_code) == ("SIGHUP (its terminal is gone)", 129)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with listen() as wish:
        os.kill(os.getpid(), signal.SIGHUP)
    assert wish.signal is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_what_was_decided_while_listening_stays_decided():
    """A rank whose neighbour is gone ignores SIGTERM until it has said why; its launcher sends one at that moment."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        with listen():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        signal.signal(signal.SIGTERM, previous)
        with listen():
            assert signal.getsignal(signal.SIGTERM) is not previous
        assert signal.getsignal(signal.SIGTERM) is previous
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_cpu_computes_float32_and_says_so():
    precision = choose_precision(
        make_spec(loop={"precision": "float16"}, model={"path": "m", "dtype": "bfloat16"}), CPU
    )
    assert precision.compute == precision.weights == torch.float32
    assert not precision.autocast
    assert "bfloat16 and float16 would be slower" in precision.why


def test_advice_against_lack_of_memory_goes_from_cheap_to_dear():
    spec = make_spec(loop={"batch_size": 4, "accumulate": 2}, model={"path": "m", "recompute": False})
    said = [advise(spec)]
    assert "loop.batch_size=1 loop.accumulate=8" in said[0]
    spec.loop.batch_size = 1
    said.append(advise(spec))
    spec.model.recompute = "layers"
    said.append(advise(spec))
    spec.optim.name = "adamw_8bit"
    said.append(advise(spec))
    assert len(set(said)) == 4
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_checkpoint_size_is_estimated():
    model = torch.nn.Linear(10, 10)
    trained = list(model.parameters())
    assert checkpoint_bytes(trained, make_spec()) == 110 * 12
    assert checkpoint_bytes(trained, make_spec(checkpoint={"optimizer": False})) == 110 * 4
    assert checkpoint_bytes(list(model.bfloat16().parameters()), make_spec(), float32=True) == 110 * 12
