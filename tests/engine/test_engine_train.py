"""`train` with a real (tiny, random) InternLM2: the work dir, resuming, and what is left at the end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xtuner.checkpoint.adapter import write_adapter
from xtuner.checkpoint.run_record import read_run
from xtuner.checkpoint.state import find_last, load_state
from xtuner.config.spec import RunSpec
from xtuner.conversation.template import ChatTemplate
from xtuner.engine.precision import Precision
from xtuner.engine.strategy.single import Single
from xtuner.engine.strategy.world import World
from xtuner.engine.train import train
from xtuner.errors import UserError
from xtuner.export.merge import merge, merge_run
from xtuner.export.to_hf import pth_to_hf
from xtuner.generate.load import load_chat
from xtuner.program import program

MODEL = Path(__file__).parent.parent / "golden" / "internlm2"
HERE = Path(__file__).parent

ROWS = [
    {"conversation": [{"system": "Be brief.", "input": f"What is {i}?", "output": f"{i} is a number. " * (i % 4 + 1)}]}
    for i in range(30)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, and all prepared data inside it."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "data.json").write_text(json.dumps(ROWS))
    return folder


def make_spec(folder: Path, work_dir: str, **parts) -> RunSpec:
    """LoRA with dropout, steps of 3 iterations, checkpoints every 5: most lie inside a step."""
    values = {
        "model": {"path": str(MODEL), "lora": {"r": 4, "dropout": 0.2}},
        "data": {
            "train": str(folder / "data.json"),
            "template": "internlm2_chat",
            "max_length": 64,
            "cache": str(folder / "cache"),
            "validation": 0.1,
        },
        "loop": {"max_iters": 20, "accumulate": 3, "log_every": 4},
        "checkpoint": {"every": 5, "keep": None},
        "optim": {"lr": 5e-3},
        "probe": {"questions": ["Who are you?", "你好"], "system": "Be brief.", "max_new_tokens": 4},
        "work_dir": str(folder / work_dir),
        "seed": 3,
    }
    return RunSpec.model_validate({**values, **parts})


@pytest.fixture(scope="module")
def whole(folder):
    """The run that was never stopped."""
    return train(make_spec(folder, "whole"), name="my_run", dump=("my_run_copy.py", "max_length = 64\n"))


def scalars(work_dir: Path, run: int = -1) -> dict[int, tuple[float, ...]]:
    """Iteration -> loss, learning rate, gradient norm of one of the runs in a work dir."""
    path = sorted(work_dir.glob("*/vis_data/scalars.json"))[run]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["iter"]: (line["loss"], line["lr"], line["grad_norm"]) for line in lines if "loss" in line}


def trained(work_dir: Path) -> torch.Tensor:
    state = load_state(find_last(work_dir))["state_dict"]
    return torch.cat([tensor.flatten() for _, tensor in sorted(state.items())])


def same(work_dir: Path, whole: Path, after: int) -> None:
    """Every number after an iteration, and every weight, is that of the run that was never stopped."""
    expected = {iteration: line for iteration, line in scalars(whole).items() if iteration > after}
    assert scalars(work_dir) == expected
    assert torch.equal(trained(work_dir), trained(whole))


def test_tree_of_the_course(whole):
    stamp = re.fullmatch(r"\d{8}_\d{6}", next(p.name for p in whole.iterdir() if p.is_dir() and p.name != "adapter"))[0]
    found = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert found == {
        "my_run_copy.py",
        "last_checkpoint",
        "run.json",
        *(f"iter_{number}.pth" for number in (5, 10, 15, 20)),
        f"{stamp}/{stamp}.log",
        f"{stamp}/vis_data/{stamp}.json",
        f"{stamp}/vis_data/scalars.json",
        f"{stamp}/vis_data/config.py",
        *(f"{stamp}/vis_data/eval_outputs_iter_{number}.txt" for number in (4, 9, 14, 19)),
        *(f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "README.md")),
        "adapter/chat_template.jinja",
    }
    assert (whole / "last_checkpoint").read_text() == str(whole / "iter_20.pth")


def test_log_and_answers(whole):
    log = next(whole.glob("*/*.log")).read_text()
    positions = [
        log.index(text)
        for text in (
            "torch: ",
            "max_length = 64",
            "CPU, computing and storing float32",
            "trained weights, adamw",
            "Num train samples",
            "train example:\n<s><|im_start|>system\nBe brief.",
            "before_train in EvaluateChatHook.",
            "Sample output:\n<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n",
            "Iter(train) [ 4/20]  lr: ",
            "Iter(val) [5/20]  loss: ",
            "Iter(train) [20/20]",
            "Finished",
            f"xtuner chat {whole}",
            f"xtuner convert merge {whole} ./merged",
        )
    ]
    assert positions == sorted(positions)
    answers = next(whole.glob("*/vis_data/eval_outputs_iter_4.txt")).read_text()
    assert answers.startswith("Eval output 1:\n<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho are you?")
    assert "\n\nEval output 2:\n" in answers
    losses = [line[0] for line in scalars(whole).values()]
    assert losses[-1] < losses[0] - 1


def test_record_and_adapter(whole, folder):
    record = read_run(whole)
    assert (record.status, record.template, record.adapter) == ("finished", "internlm2_chat", "adapter")
    assert record.base["path"] == str(MODEL.resolve())
    assert RunSpec.model_validate(record.spec) == make_spec(folder, "whole")
    assert record.data["report"]["rows"] == 30
    assert (record.last_checkpoint, record.config) == ("iter_20.pth", "my_run_copy.py")
    state = load_state(whole / "iter_20.pth")["state_dict"]
    tensors = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == len(state) > 20
    name = "base_model.model.model.layers.0.attention.wqkv.lora_B"
    assert torch.equal(tensors[f"{name}.weight"], state[f"llm.{name}.default.weight"])
    assert tensors[f"{name}.weight"].abs().sum() > 0


@pytest.mark.parametrize("number", [5, 10, 15])
def test_resume_is_never_having_stopped(whole, folder, number):
    work_dir = folder / f"resumed_{number}"
    work_dir.mkdir()
    checkpoint = shutil.copy(whole / f"iter_{number}.pth", work_dir)
    parts = {"resume": checkpoint, "seed": 99} if number == 5 else {"resume": checkpoint}
    train(make_spec(folder, work_dir.name, **parts), name="my_run")
    same(work_dir, whole, number - number % 3)
    log = next(work_dir.glob("*/*.log")).read_text()
    assert f"Resumed from {checkpoint}: iteration {number - number % 3} of 20" in log
    assert ("The seed of the checkpoint, 3, is used, not 99." in log) == (number == 5)


def test_full_weights_resume_too(folder):
    parts = {"model": {"path": str(MODEL)}, "probe": None, "loop": {"max_iters": 4, "accumulate": 3}}
    parts["checkpoint"] = {"every": 2, "keep": None}
    full = train(make_spec(folder, "full", **parts))
    expected = trained(full)
    assert not (full / "adapter").exists()
    train(make_spec(folder, "full", **parts, resume=str(full / "iter_2.pth")))
    assert torch.equal(trained(full), expected)
    assert scalars(full, 0) == scalars(full, 1)


def test_killed_while_saving(whole, folder):
    """kill -9 with a file on the disk that is not in its place yet; `resume=auto` goes on from the last whole one."""
    spec = make_spec(folder, "killed", checkpoint={"every": 1, "keep": 2}, resume="auto", probe=None)
    work_dir = Path(spec.work_dir)
    process = subprocess.run(
        [sys.executable, str(HERE / "train_in_process.py"), spec.model_dump_json(), ".iter_7.pth.part"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert (work_dir / ".iter_7.pth.part").exists()
    reached = load_state(find_last(work_dir))["meta"]["border"]
    assert reached == 6
    assert read_run(work_dir).status == "running"
    train(spec)
    same(work_dir, whole, reached)
    assert not list(work_dir.glob(".*"))


def test_a_signal_while_the_adapter_is_written_finishes_the_run(folder, monkeypatch):
    """The weights are learned and saved, and the rest is a moment."""
    plain = write_adapter

    def write(*words, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        plain(*words, **more)

    monkeypatch.setattr("xtuner.engine.train.write_adapter", write)
    signal.signal(signal.SIGTERM, lambda *_: pytest.fail("it was not waited for"))
    work_dir = train(make_spec(folder, "late", loop={"max_iters": 2}, probe=None))
    assert read_run(work_dir).status == "finished"
    assert (work_dir / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("number", [1, 8])
def test_ctrl_c_then_resume(whole, folder, number):
    press = {"name": f"{HERE / 'train_in_process.py'}:Press", "iteration": number}
    spec = make_spec(folder, f"interrupted_{number}", callbacks=[press])
    work_dir = Path(spec.work_dir)
    with pytest.raises(UserError, match=f"Stopped by Ctrl-C at iteration {number} of 20") as caught:
        train(spec)
    assert caught.value.exit_code == 130
    checkpoint = work_dir / f"iter_{number}.pth"
    assert f"{program()} train {work_dir}/run.yaml --work-dir {work_dir} --resume {checkpoint}" in caught.value.fix
    assert read_run(work_dir).status == "stopped"
    assert find_last(work_dir) == checkpoint
    train(make_spec(folder, work_dir.name, resume=str(checkpoint)))
    same(work_dir, whole, number - number % 3)


def test_changed_data_and_damaged_checkpoints_are_refused(whole, folder):
    other = folder / "other"
    other.mkdir()
    (other / "data.json").write_text(json.dumps(ROWS[:-1]))
    spec = make_spec(folder, "whole", resume=str(whole / "iter_5.pth"))
    short = folder / "short.pth"
    short.write_bytes((whole / "iter_5.pth").read_bytes()[:-1000])
    with pytest.raises(UserError, match="cut short"):
        train(spec.model_copy(update={"resume": str(short), "work_dir": str(folder / "refused")}))
    assert read_run(folder / "refused").status == "failed"
    (folder / "data.json").write_text(json.dumps(ROWS[:-1]))
    try:
        with pytest.raises(UserError, match=r"training data changed since iter_5\.pth"):
            train(spec.model_copy(update={"work_dir": str(folder / "refused")}))
    finally:
        (folder / "data.json").write_text(json.dumps(ROWS))
    assert "Ended: The training data changed" in sorted((folder / "refused").glob("*/*.log"))[-1].read_text()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"strategy": "fsdq"}, "There is no strategy called fsdq"),
        ({"objective": {"name": "sft", "beta": 1}}, "The objective sft has no option beta"),
        ({"callbacks": ["thruput"]}, "There is no callback called thruput"),
        ({"resume": "iter_9.pth"}, "There is no checkpoint iter_9.pth"),
        ({"optim": {"name": "adamv"}, "data": {"train": "nowhere.json"}}, "There is no optimiser called adamv"),
        ({"model": {"path": str(MODEL), "quant": {}}, "data": {"train": "nowhere.json"}}, "Quantised weights cannot"),
        ({"probe": {"questions": ["a"], "template": "internlm2_chatt"}}, "internlm2_chatt"),
        ({"data": {"train": "nowhere.json"}}, "nowhere.json"),
        ({"data": {"train": "nowhere.json"}, "loop": {"validate_every": 5}}, "nothing to validate on"),
    ],
)
def test_what_cannot_be_done_is_said(folder, parts, message):
    with pytest.raises(UserError, match=re.escape(message)):
        train(make_spec(folder, "said", **parts))


def test_a_tokenizer_of_another_model_is_refused(folder):
    built_in = Path(__file__).parents[2] / "xtuner" / "assets" / "tiny"
    spec = make_spec(folder, "said", model={"path": str(MODEL), "tokenizer": str(built_in), "lora": {"r": 4}})
    with pytest.raises(UserError, match=r"tiny gives token \d+, but the model knows only 752 "):
        train(spec)


class Four(World):
    """A world that says it has four processes."""

    size = 4


def test_a_single_process_is_not_several():
    with pytest.raises(UserError, match="started as 4 processes, and strategy=single is one"):
        Single(torch.device("cpu"), Precision(torch.float32, torch.float32, ""), Four())


def test_throughput_callback(folder):
    parts = {"callbacks": ["throughput"], "probe": None, "loop": {"max_iters": 2}}
    work_dir = train(make_spec(folder, "throughput", **parts))
    line = json.loads(next(work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()[0])
    assert line["tokens_per_sec"] > 0
    assert line["tflops"] > 0


def test_plain_text_is_continued_and_probes_ask_every_n_iterations(folder):
    (folder / "text.json").write_text(json.dumps([{"text": f"Number {i} is a number. " * 4} for i in range(12)]))
    parts = {
        "model": {"path": str(MODEL), "lora": {"r": 4}},
        "data": {"train": str(folder / "text.json"), "max_length": 64, "cache": str(folder / "cache")},
        "loop": {"max_iters": 4},
        "checkpoint": {"every": 4},
        "probe": {"questions": ["Number 3"], "every": 2, "max_new_tokens": 3},
    }
    work_dir = train(make_spec(folder, "text", **parts))
    assert read_run(work_dir).template is None
    assert not (work_dir / "adapter" / "chat_template.jinja").exists()
    log = next(work_dir.glob("*/*.log")).read_text()
    assert re.findall(r"(\w+) in EvaluateChatHook", log) == ["before_train", "after_train_iter", "after_checkpoint"]
    assert log.count("Sample output:\nNumber 3") == 3
    assert next(work_dir.glob("*/vis_data/eval_outputs_iter_3.txt")).read_text().startswith("Eval output 1:\nNumber 3")


def test_a_training_that_fails_at_once_leaves_the_record_of_the_last_one(whole, folder):
    before = (whole / "run.json").read_text()
    with pytest.raises(UserError, match="nowhere"):
        train(make_spec(folder, "whole", data={"train": "nowhere.json"}), name="my_run")
    assert (whole / "run.json").read_text() == before


TEMPLATE = """
from xtuner.conversation.template import ChatTemplate
MINE = ChatTemplate("mine", instruction="Q {input} A ", system="S {system} ", stop_words=("Q",))
"""


def test_a_template_of_ones_own_from_training_to_the_merged_model(folder, monkeypatch):
    """The record holds its fields, so that afterwards nothing needs or runs the file."""
    monkeypatch.chdir(folder)
    Path("mine.py").write_text(TEMPLATE)
    spec = make_spec(folder, "mine", loop={"max_iters": 2}, checkpoint={"every": 2})
    spec.data.template, spec.probe.template = "mine.py:MINE", "mine.py:MINE"
    run = train(spec)
    log = next(run.glob("*/*.log")).read_text()
    assert "Sample output:\nS Be brief. Q Who are you? A " in log, "the probe speaks it too"
    Path("mine.py").write_text("raise SystemExit('run')")
    chat = load_chat(run, tell=lambda text: None)
    assert chat.template == ChatTemplate("mine", "Q {input} A ", "S {system} ", stop_words=("Q",))
    merge_run(run, folder / "mine_merged", tell=lambda text: None)
    merge(MODEL, run / "adapter", folder / "mine_merged_too", tell=lambda text: None)
    pth_to_hf(spec, run / "iter_2.pth", folder / "mine_adapter", tell=lambda text: None)
    jinja = (run / "adapter" / "chat_template.jinja").read_text()
    assert (folder / "mine_adapter" / "chat_template.jinja").read_text() == jinja
    for merged in ("mine_merged", "mine_merged_too"):
        assert json.loads((folder / merged / "tokenizer_config.json").read_text())["chat_template"] == jinja
    shutil.copy(run / "iter_2.pth", folder / "alone.pth")
    with pytest.raises(UserError, match=r"mine\.py:MINE of this checkpoint is not recorded beside it"):
        pth_to_hf(spec, folder / "alone.pth", folder / "mine_adapter")
