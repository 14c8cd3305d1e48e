"""How processes are started: where they are, by whose variables, on which port, and which signals they are told of."""

import os
import signal
import socket

import pytest
from torch.distributed.elastic.multiprocessing import api

from xtuner.cli.launch import Agent, Layout, first_host, heed_signals, is_first_here, launch, read_layout, take_place
from xtuner.errors import UserError


def test_layout():
    layout = read_layout({"NPROC_PER_NODE": "4"})
    assert (layout.processes, layout.machines, layout.port, layout.several) == (4, 1, None, True)
    assert not read_layout({}).several
    assert not read_layout({"NPROC_PER_NODE": " "}).several
    found = read_layout({"NNODES": "2", "NODE_RANK": "1", "ADDR": "10.0.0.1", "PORT": "2345"})
    assert (found.machines, found.machine, found.address, found.port) == (2, 1, "10.0.0.1", 2345)


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"NPROC_PER_NODE": "two"}, "NPROC_PER_NODE is two"),
        ({"NPROC_PER_NODE": "0"}, "NPROC_PER_NODE is 0"),
        ({"NNODES": "2"}, "PORT is not set"),
        ({"NNODES": "2", "NODE_RANK": "2", "PORT": "1"}, "NODE_RANK is 2"),
    ],
)
def test_wrong_layouts(variables, word):
    with pytest.raises(UserError, match=word) as error:
        read_layout(variables)
    assert error.value.exit_code == 2


def test_slurm(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "ADDR", "PORT", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="srun has not started this"):
        take_place("slurm")
    given = {"PROCID": "5", "NTASKS": "8", "LOCALID": "1", "NODEID": "1", "STEP_TASKS_PER_NODE": "4(x2)"}
    for name, value in {**given, "STEP_NODELIST": "gpu[03-05],cpu1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "")
    monkeypatch.setenv("GROUP_RANK", "")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    take_place("slurm")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["5", "8", "1", "4", "1", "gpu03", "29500"]
    assert not is_first_here()
    for name in names:
        os.environ.pop(name)


@pytest.mark.parametrize(
    ("names", "first"), [("gpu1", "gpu1"), ("gpu1,gpu2", "gpu1"), ("n[01-03,7]", "n01"), ("a[2,5]-ib,b", "a2-ib")]
)
def test_first_host(names, first):
    assert first_host(names) == first


def hear(*numbers: int) -> list[int]:
    """Send signals to this process, as a launcher; returns those that raised."""
    raised = []
    for number in numbers:
        try:
            os.kill(os.getpid(), number)
        except api.SignalException as stop:
            raised.append(int(stop.sigval))
    return raised


def test_a_launcher_passes_a_signal_on_once():
    """At a further one it would leave processes that are still saving."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    heed_signals(api.SignalException)
    assert hear(signal.SIGTERM, signal.SIGTERM, signal.SIGHUP) == [signal.SIGTERM]
    assert hear(signal.SIGINT, signal.SIGINT) == [signal.SIGINT, signal.SIGINT]
    heed_signals(api.SignalException)
    assert hear(signal.SIGHUP, signal.SIGTERM) == [signal.SIGHUP]


def test_a_launcher_under_nohup_outlives_its_terminal():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    heed_signals(api.SignalException)
    assert hear(signal.SIGHUP, signal.SIGTERM) == [signal.SIGTERM]


def test_what_torch_says_of_the_processes_is_heard_and_not_shown(caplog):
    logger = api.logger
    agent = Agent()
    logger.warning("Sending process %s closing signal %s", 1, "SIGTERM")
    assert not agent.lost_patience
    logger.warning("Unable to shutdown process %s via %s, forcefully exiting via %s", 1, "SIGTERM", "SIGKILL")
    logger.removeFilter(agent)
    assert agent.lost_patience
    assert not caplog.records


@pytest.mark.parametrize("machines", [1, 2])
def test_a_port_in_use(machines):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} is in use"):
            launch(Layout(2, machines, 0, "127.0.0.1", port), [])
