"""Runs with the settings of small cards, from data to chat, and the gate before FP8."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from xtuner.checkpoint.run_record import read_run
from xtuner.checkpoint.state import load_state
from xtuner.config.check import to_spec
from xtuner.conversation.chat_model import Sampling
from xtuner.conversation.message import Message
from xtuner.engine.idle import check_compiler, idle_settings
from xtuner.engine.train import train
from xtuner.errors import UserError
from xtuner.export.merge import merge_run
from xtuner.generate.load import load_chat

MODEL = Path(__file__).parent.parent / "golden" / "internlm2"
ROWS = [{"instruction": f"What is {i}?", "output": f"{i} is a number. " * (i % 4 + 1)} for i in range(20)]
CPU = torch.device("cpu")
TARGETS = ["wqkv", "wo", "w1", "w2", "w3"]
"""All but the head, which is then frozen."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small_card")
    (folder / "data.json").write_text(json.dumps(ROWS))
    return folder


def spec_of(folder, work_dir, model, **parts):
    return to_spec(
        {
            "model": {"path": str(MODEL), "lora": {"r": 4, "targets": TARGETS}, **model},
            "data": {
                "train": str(folder / "data.json"),
                "template": "internlm2_chat",
                "max_length": 64,
                "cache": str(folder / "cache"),
            },
            "loop": {"max_iters": 6, "log_every": 1},
            "checkpoint": {"every": 3, "keep": None},
            "work_dir": str(folder / work_dir),
            **parts,
        }
    )


def log_of(work_dir):
    return "".join(path.read_text("utf-8") for path in sorted(Path(work_dir).glob("*/*.log")))


def weights(work_dir):
    return load_state(Path(work_dir) / "iter_6.pth")["state_dict"]


@pytest.fixture(scope="module")
def small(folder):
    model = {"quant": {"bits": 4, "head": True}, "host_embedding": True}
    return train(spec_of(folder, "small", model, probe={"questions": ["What is 1?"], "max_new_tokens": 4}))


def test_a_resumed_run_is_the_run(folder, small):
    work_dir = folder / "resumed"
    work_dir.mkdir()
    checkpoint = shutil.copy(small / "iter_3.pth", work_dir)
    model = {"quant": {"bits": 4, "head": True}, "host_embedding": True}
    train(spec_of(folder, "resumed", model, resume=str(checkpoint)))
    found, expected = weights(work_dir), weights(small)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_host_changes_nothing(folder, small):
    plain = train(spec_of(folder, "plain", {"quant": {"bits": 4, "head": True}}))
    found, expected = weights(plain), weights(small)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_is_merged_and_talked_to(folder, small):
    chat = load_chat(small, tell=lambda text: None)
    assert list(chat.stream([Message("user", "What is 1?")], Sampling(max_new_tokens=3)))
    merge_run(small, folder / "merged", device="cpu")
    assert (folder / "merged" / "config.json").is_file()


FP8 = {"bits": 8, "type": "fp8"}


def test_fp8_says_what_it_costs(folder):
    work_dir = train(spec_of(folder, "fp8", {"quant": FP8}, loop={"max_iters": 1}))
    cost = read_run(work_dir).measured["fp8"]
    assert cost["limit"] == 0.05
    assert 0 < abs(cost["loss_after"] - cost["loss_before"]) < 0.05
    assert 0 < cost["mean_logit"] < cost["max_logit"]
    assert f"loss: {cost['loss_after']:.4f}" in log_of(work_dir)  # of the first iteration, on the same batch
    assert f"FP8 changes the loss of the first batch ({cost['tokens']:,} tokens) by" in log_of(work_dir)


def test_fp8_that_costs_too_much_is_refused(folder):
    strict = {"quant": {**FP8, "max_loss_change": 0}}
    with pytest.raises(UserError, match=r"by [+-]0\.\d+, and the limit is 0") as caught:
        train(spec_of(folder, "refused", strict, loop={"max_iters": 1}))
    assert "model.quant.max_loss_change=null" in caught.value.fix
    record = read_run(folder / "refused")
    assert record.status == "failed"
    assert record.measured["fp8"]["limit"] == 0
    accepted = {"quant": {**FP8, "max_loss_change": None}}
    train(spec_of(folder, "accepted", accepted, loop={"max_iters": 1}))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"recompute": "offload_layers"}, "offload_layers: on a CPU .* as with layers"),
        ({"recompute": "offload"}, "offload: on a CPU .* as with mlp"),
        ({"host_embedding": True}, "host_embedding: on a CPU everything is in host memory"),
        ({"quant": FP8}, "fp8: a CPU has no such products"),
    ],
)
def test_settings_without_effect_are_said(folder, model, said):
    [sentence] = idle_settings(spec_of(folder, "idle", model), "a CPU", is_cpu=True, has_bfloat16=False)
    assert re.search(said, sentence)


def test_nothing_is_said_of_settings_with_effect(folder, small):
    spec = spec_of(folder, "idle", {"quant": {"bits": 4, "head": True}})
    assert list(idle_settings(spec, "a CPU", is_cpu=True, has_bfloat16=False)) == []
    assert log_of(small).count("on a CPU everything is in host memory") == 1


def test_compiling_without_a_compiler_is_refused(folder, monkeypatch, tmp_path):
    spec = spec_of(folder, "compiled", {"compile": True})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        check_compiler(spec, is_cpu=True)
    check_compiler(spec_of(folder, "plain", {}), is_cpu=True)
    (tmp_path / "g++").write_text("")
    (tmp_path / "g++").chmod(0o755)
    check_compiler(spec, is_cpu=True)
