"""list-cfg and copy-cfg, with every name there is."""

import errno
import json
import os
from pathlib import Path

import pytest

from xtuner.catalog.deepspeed import ZERO
from xtuner.catalog.names import names, run_names
from xtuner.catalog.render import render_file
from xtuner.catalog.script import SCRIPTS
from xtuner.cli.main import main
from xtuner.config.check import to_spec
from xtuner.config.reader import read_text


def test_every_name_is_listed_in_the_frame(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-cfg"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{'=' * 26}CONFIGS{'=' * 27}", *names(), "=" * 61]
    assert len(lines) == 587
    assert main(["list-cfg", "-p", "DeepSpeed_"]) == 0
    assert capsys.readouterr().out.splitlines()[1:-1] == ["PATTERN: DeepSpeed_", "-" * 31, *sorted(ZERO)]


def test_every_name_is_copied_or_says_what_takes_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 0
    for number, name in enumerate(names()):
        if name in SCRIPTS:
            assert main(["copy-cfg", name, str(tmp_path)]) == 1, name
            assert capsys.readouterr().err.splitlines()[1] == SCRIPTS[name]
            continue
        text, suffix = render_file(name)
        assert suffix == (".json" if name in ZERO else ".py")
        if name in ZERO:
            assert json.loads(text)["zero_optimization"]["stage"] in (1, 2, 3)
        else:
            compile(text, name, "exec")
        count += 1
        if number % 25 == 0 or name in ZERO:  # a copy waits for the disk
            target = tmp_path / f"{name}_copy{suffix}"
            code = main(["copy-cfg", name, str(tmp_path)])
            assert (code, capsys.readouterr().out) == (0, f"Copy to {target}\n"), name
            assert target.read_text("utf-8") == text
    assert count == len(run_names()) + len(ZERO) == 581


def test_what_is_not_a_run_is_not_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "deepspeed_zero2"]) == 1
    assert "Training with DeepSpeed is not part of this version yet." in capsys.readouterr().err
    assert main(["train", "convert_to_official"]) == 1
    assert "was a script" in capsys.readouterr().err
    assert main(["copy-cfg", "llava_internlm2_chat_7b_clip_vit_large_p14_336_e1_gpu8_pretran", "."]) == 1
    shown = capsys.readouterr().err
    assert "Did you mean llava_internlm2_chat_7b_clip_vit_large_p14_336_e1_gpu8_pretrain" in shown


def full_disk(handle: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_copy_is_whole_or_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "internlm2_chat_1_8b_qlora_alpaca_e3"
    target = tmp_path / f"{name}_copy.py"
    target.write_text("mine", "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        assert main(["copy-cfg", name, str(tmp_path)]) == 1
    assert "The disk is full while writing" in capsys.readouterr().err
    assert target.read_text("utf-8") == "mine"
    assert main(["copy-cfg", name, str(tmp_path)]) == 0
    assert target.read_text("utf-8") != "mine"


def test_a_file_that_was_edited_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "internlm2_chat_1_8b_qlora_alpaca_e3"
    target = tmp_path / f"{name}_copy.py"
    assert main(["copy-cfg", name, str(tmp_path)]) == main(["copy-cfg", name, str(tmp_path)]) == 0
    assert [file.name for file in tmp_path.iterdir()] == [target.name]  # nothing was edited
    target.write_text("mine", "utf-8")
    assert main(["copy-cfg", name, str(tmp_path)]) == 0
    assert f"{target.name}.bak" in "".join(capsys.readouterr())
    assert target.with_name(f"{target.name}.bak").read_text("utf-8") == "mine"
    assert main(["copy-cfg", name, str(tmp_path), "--yaml"]) == 0
    spec = to_spec(read_text(target.with_suffix(".yaml").read_text("utf-8"), Path("a.yaml"), "yaml").values)
    assert spec.data.template == "internlm2_chat"
    assert main(["list-cfg", "-p", "internlm2_1b8"]) == 0
    shown = capsys.readouterr()
    assert "No name contains internlm2_1b8." in shown.err
    assert "internlm2" in shown.err
