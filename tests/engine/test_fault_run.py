"""What can happen to a run and its surroundings: each is one sentence with what to type, and no work is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fakes import make_run
from safetensors.torch import load_file, save_file
from tiny import make_tiny_internlm2

from xtuner.checkpoint.state import find_last, load_state
from xtuner.config.spec import RunSpec, SourceSpec
from xtuner.conversation.builtin import find_template
from xtuner.conversation.encode import Encoder
from xtuner.dataset.encode import Job
from xtuner.dataset.parallel import encode_source
from xtuner.dataset.source import open_source
from xtuner.engine import workdir
from xtuner.engine.footing import SAMPLE_BYTES, hash_weights
from xtuner.engine.loop import run_loop
from xtuner.engine.train import train
from xtuner.engine.workdir import WorkDir
from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer

HERE = Path(__file__).parent
ROWS = [{"conversation": [{"input": f"What is {i}?", "output": f"{i} is a number."}]} for i in range(20)]
OTHER = [{"conversation": [{"input": "Who?", "output": "Nobody."}]}] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, two data files and a run of 6 iterations that saved after 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("faults")
    make_tiny_internlm2(folder / "base")
    for name, rows in (("data", ROWS), ("more", OTHER)):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    train(make_spec(folder, "run"))
    return folder


def make_spec(folder: Path, name: str, **parts: Any) -> RunSpec:
    values = {
        "model": {"path": str(folder / "base"), "lora": {"r": 4}},
        "data": {
            "train": [str(folder / "data.json"), str(folder / "more.json")],
            "template": "internlm2_chat",
            "max_length": 64,
            "cache": str(folder / "cache"),
        },
        "loop": {"max_iters": 6, "log_every": 2},
        "checkpoint": {"every": 2, "keep": None},
        "work_dir": str(folder / name),
    }
    return RunSpec.model_validate({**values, **parts})


def resumed(folder: Path, name: str, **parts: Any) -> RunSpec:
    """The spec of a run that goes on from iteration 2 in a folder of its own."""
    return make_spec(folder, name, resume=str(folder / "run" / "iter_2.pth"), **parts)


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    return load_state(find_last(work_dir))["state_dict"]


def test_data_that_changed_is_named_and_refused_unless_told(folder: Path) -> None:
    data = folder / "data.json"
    before = data.read_text()
    data.write_text(before.replace("3 is a number", "3 is odd"))
    try:
        with pytest.raises(UserError, match=r"changed since iter_2\.pth was saved \(\S*data\.json\), so") as caught:
            train(resumed(folder, "changed"))
        assert "resume_changed_data=true" in caught.value.fix
        work_dir = train(resumed(folder, "changed", resume_changed_data=True))
        log = sorted(work_dir.glob("*/*.log"))[-1].read_text()
        assert "the rest of the run learns from the data as it is now" in log
        found, old = weights(work_dir), weights(folder / "run")
        assert any(not torch.equal(found[name], old[name]) for name in old)
    finally:
        data.write_text(before)
    found, old = weights(train(resumed(folder, "back"))), weights(folder / "run")
    assert all(torch.equal(found[name], old[name]) for name in old)


@pytest.mark.parametrize("kind", ["weights", "config"])
def test_another_base_model_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    """At the same path, since another path is another run anyway."""
    base = folder / "base"
    shutil.copytree(base, tmp_path / "kept")
    try:
        if kind == "weights":  # trained a little more: same names, same sizes
            tensors = load_file(base / "model.safetensors")
            save_file({k: v * 1.001 for k, v in tensors.items()}, base / "model.safetensors", metadata={"format": "pt"})
        else:
            config = json.loads((base / "config.json").read_text())
            (base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
        said = {"weights": "the weights", "config": r"config\.json"}[kind]
        with pytest.raises(UserError, match=rf"base changed since iter_2\.pth was saved \({said}\)"):
            train(resumed(folder, f"base_{kind}"))
    finally:
        shutil.rmtree(base)
        shutil.copytree(tmp_path / "kept", base)


def test_weights_are_told_apart_by_samples(tmp_path: Path) -> None:
    content = bytearray(os.urandom(40 * SAMPLE_BYTES))
    (tmp_path / "model.safetensors").write_bytes(content)
    before = hash_weights(tmp_path)
    content[len(content) // 2] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert hash_weights(tmp_path) != before
    assert hash_weights(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": {"lora": {"r": 8}}}, r"not the run that iter_2\.pth belongs to \(model\.lora\.r: 4 then, 8 now\)"),
        ({"model": {"lora": None}}, r"not the run that iter_2\.pth belongs to"),
        ({"optim": {"name": "sgd"}}, r"optim\.name: 'adamw' then, 'sgd' now"),
    ],
)
def test_a_checkpoint_of_other_weights_is_named(folder: Path, parts: dict[str, Any], message: str) -> None:
    parts = {**parts, **({"model": {"path": str(folder / "base"), **parts["model"]}} if "model" in parts else {})}
    with pytest.raises(UserError, match=message) as caught:
        train(resumed(folder, "other", **parts))
    assert "model.weights=" in caught.value.fix


@pytest.mark.parametrize("cut", [1, 1000, 0.5, 0.0])
def test_a_truncated_checkpoint_is_named(folder: Path, cut: float) -> None:
    whole = (folder / "run" / "iter_2.pth").read_bytes()
    short = folder / "short.pth"
    short.write_bytes(whole[: int(len(whole) * cut)] if cut < 1 else whole[: -int(cut)])
    with pytest.raises(UserError, match=r"short\.pth is not a checkpoint, or it is cut short\. Use an earlier"):
        train(resumed(folder, "truncated").model_copy(update={"resume": str(short)}))


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back by a day before every question: no folder is used twice, no time is negative."""
    now = [datetime(2030, 1, 2, 3, 4, 5)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            now[0] -= timedelta(seconds=1)
            return now[0]

    monkeypatch.setattr(workdir, "datetime", Clock)
    monkeypatch.setattr(time, "time", lambda: now[0].timestamp())
    runs = []
    for _ in range(3):
        run = make_run(tmp_path, loop={"max_iters": 4, "log_every": 1})
        run_loop(run)
        run.work.close()
        runs.append(run)
        now[0] += timedelta(seconds=2)
        now[0] -= timedelta(seconds=1)
    assert len({run.work.timestamp for run in runs}) == 3
    for run in runs:
        lines = [json.loads(line) for line in (run.work.visual / "scalars.json").read_text().splitlines()]
        assert all(0 <= line["time"] < 60 and 0 <= line["data_time"] < 60 for line in lines)
        assert "eta: -" not in run.work.log.read_text()


def test_sigterm_is_obeyed_after_the_iteration_and_saved(folder: Path) -> None:
    """A scheduler gives 30 seconds or so; only the iteration that is running and a checkpoint are waited for."""
    press = {
        "name": f"{HERE / 'train_in_process.py'}:Press",
        "options": {"iteration": 7, "number": int(signal.SIGTERM)},
    }
    spec = make_spec(folder, "terminated", loop={"max_iters": 100_000}, checkpoint={"every": None}, callbacks=[press])
    with pytest.raises(UserError, match="Stopped by SIGTERM at iteration 7 of 100000") as caught:
        train(spec)
    assert caught.value.exit_code == 143
    last = find_last(folder / "terminated")
    assert load_state(last)["meta"]["iter"] == 7
    assert f"--resume {last}" in caught.value.fix


def test_a_second_training_in_one_work_dir_is_refused(folder: Path) -> None:
    code = "import sys, time; from pathlib import Path; from xtuner.engine.workdir import WorkDir\n"
    code += "WorkDir(Path(sys.argv[1]), 'a.yaml', ''); print('open', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder / "held")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=rf"Another training, process {holder.pid}, is writing into .*held"):
            train(make_spec(folder, "held"))
    finally:
        holder.kill()
        holder.wait()
    WorkDir(folder / "held", "a.yaml", "").close()


def test_a_killed_worker_of_the_data_does_not_hang(tmp_path: Path) -> None:
    """Killed from outside while it works: the rows that were under way are named. The row it is at takes forever."""
    note = tmp_path / "pid"

    def slow(row: Any) -> Any:
        if row["n"] == 1700:
            note.write_text(str(os.getpid()))
            time.sleep(600)
        return ROWS[row["n"] % 20]

    (tmp_path / "a.json").write_text(json.dumps([{"n": n} for n in range(3000)]))
    source = open_source(SourceSpec(path=str(tmp_path / "a.json")))
    tokenizer = load_tokenizer(str(Path(__file__).parent.parent / "golden" / "internlm2"))
    job = Job("a", "mine.py:slow", slow, False, find_template("internlm2_chat"), Encoder(tokenizer), 64)

    def kill() -> None:
        while not (note.exists() and note.read_text()):
            time.sleep(0.01)
        os.kill(int(note.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match=r"\(rows [\d,]+ to 3,000 of .*a\.json\) was ended from outside") as caught:
        list(encode_source(job, source, workers=2))
    killer.join()
    assert "Close other programs" in caught.value.fix


def test_what_is_held_is_said_when_the_memory_runs_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, loop={"max_iters": 6}, checkpoint={"every": 2})
    plain = run.objective

    class Hungry(type(plain)):  # type: ignore[misc]
        def __call__(self, model: Any, batch: Any) -> Any:
            if run.iteration == 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().__call__(model, batch)

    run.objective = Hungry()
    with pytest.raises(UserError, match=r"memory ran out at iteration 4 \(") as caught:
        run_loop(run)
    run.work.close()
    assert "iter_2.pth" in caught.value.fix
    assert "--resume" in caught.value.fix
    assert find_last(tmp_path).name == "iter_2.pth"
