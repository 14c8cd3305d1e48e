"""Several processes that are started by `xtuner train`, and what happens when one of them fails, dies or hangs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from strategy_fakes import HERE, free_port, losses, type_train, wait
from tiny import make_tiny_internlm2

from xtuner.checkpoint.run_record import read_run
from xtuner.checkpoint.state import load_weights

ROWS = [{"conversation": [{"input": f"What is {i}?", "output": f"{i} is a number."}]} for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    make_tiny_internlm2(folder / "model")
    (folder / "data.json").write_text(json.dumps(ROWS))
    return folder


def launch(
    folder: Path, name: str, fault: str = "", *words: str, iters: int = 4000, **variables: str
) -> subprocess.Popen:
    """Type `xtuner train` for two processes; `fault` is what rank 1 does after iteration 3."""
    values = {
        "model": {"path": str(folder / "model"), "lora": {"r": 4}},
        "data": {"train": str(folder / "data.json"), "template": "internlm2_chat", "max_length": 64, "pack": False},
        "loop": {"max_iters": iters, "log_every": 1},
        "checkpoint": {"every": 2},
        "callbacks": [{"name": f"{HERE}/strategy_fault.py:Fault", "options": {"what": fault}}] if fault else [],
    }
    values["data"]["cache"] = str(folder / "cache")
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(values))
    return type_train(config, "--work-dir", str(folder / name), *words, **variables)


def wait_for(path: Path, pattern: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + 240
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def faults(folder):
    """All at once, since most of their time is waiting: name -> (exit code, what was said)."""
    port = str(free_port())
    running = {
        "raises": launch(folder, "raises", "raise"),
        "killed": launch(folder, "killed", "kill", iters=8),
        "whole": launch(folder, "whole", iters=8),
        "hangs": launch(folder, "hangs", "hang", XTUNER_TIMEOUT="2"),
        "sigterm": launch(folder, "sigterm"),
    }
    for number in range(2):  # two agents, as on two machines, with one process each
        place = {"NPROC_PER_NODE": "1", "NNODES": "2", "NODE_RANK": str(number), "PORT": port}
        running[f"machine {number}"] = launch(folder, "machines", iters=4, **place)
    try:
        wait_for(folder / "sigterm", "iter_*.pth", running["sigterm"])
        running["sigterm"].send_signal(signal.SIGTERM)
    except BaseException:
        for process in running.values():
            process.kill()
        raise
    return dict(zip(running, wait(list(running.values()), timeout=480), strict=True))


def log_of(folder: Path, name: str) -> str:
    return next((folder / name).glob("*/*.log")).read_text()


def test_a_rank_that_fails_is_named_with_its_reason(folder, faults):
    code, said = faults["raises"]
    assert code == 3
    assert "Rank 1 stopped: The second rank has had enough." in said
    assert "Rank 1 stopped: The second rank has had enough. Let it rest." in log_of(folder, "raises")
    assert "Traceback" not in said
    assert read_run(folder / "raises").status == "failed"
    assert said.count("The last checkpoint, iter_2.pth, is intact. To go on from it, type:") == 1


def test_a_rank_that_is_killed_ends_the_others(folder, faults):
    code, said = faults["killed"]
    assert code == 128 + signal.SIGKILL
    assert "Rank 1 was killed (SIGKILL)" in said
    assert re.search(r"Rank 1 is gone \([^()]*(Connection (closed|reset) by peer|Broken pipe)", said)
    assert ".cc:" not in said  # gloo names a line of its own source
    assert said.count("The last checkpoint, iter_2.pth, is intact. To go on from it, type:") == 1
    assert "Rank 1 is gone" in log_of(folder, "killed")
    assert read_run(folder / "killed").status == "failed"


def test_a_run_whose_rank_was_killed_goes_on_as_if_it_had_not(folder, faults):
    """Two processes: the weights are those of the run that was left alone, bit for bit."""
    assert faults["whole"][0] == 0, faults["whole"][1]
    process = launch(folder, "killed", "", "--resume", iters=8)
    [(code, said)] = wait([process], timeout=300)
    assert code == 0, said
    assert "Resumed from" in said
    found, wanted = (load_weights(folder / name / "iter_8.pth") for name in ("killed", "whole"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_rank_that_hangs_is_named(folder, faults):
    code, said = faults["hangs"]
    assert code == 1
    assert "Rank 1 stopped: It kept the others waiting for 0.1 minutes." in said
    assert "Rank 1 stopped: It kept the others waiting" in log_of(folder, "hangs")


def test_sigterm_saves_on_all_ranks(folder, faults):
    code, said = faults["sigterm"]
    assert code == 128 + signal.SIGTERM, said
    assert "Stopped by SIGTERM at iteration" in said
    assert said.count("Stopped by SIGTERM") == 1
    assert "death signal" not in said  # torch's own words
    assert read_run(folder / "sigterm").status == "stopped"
    last = read_run(folder / "sigterm").last_checkpoint
    assert (folder / "sigterm" / last).is_file()


def test_ctrl_c_ends_a_rank_that_waits_for_one_that_never_comes():
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    program = "from xtuner.engine.strategy.world import Place, Processes; Processes(Place.read())"
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **place})
    try:
        end = time.monotonic() + 120
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", int(place["MASTER_PORT"]))):  # until it listens, which it does waiting
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == -signal.SIGINT
    finally:
        process.kill()


def test_two_machines(folder, faults):
    said = [faults[f"machine {number}"] for number in range(2)]
    assert [code for code, _ in said] == [0, 0], said
    assert list(losses(folder / "machines")) == [1, 2, 3, 4]
    assert "Meeting 2 machines" in said[0][1]
    assert "Iter(train)" in said[0][1]
    assert "Iter(train)" not in said[1][1]
