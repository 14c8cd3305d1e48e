"""list-cfg and copy-cfg: the frame, the file, and what happens to edits."""

from pathlib import Path

import pytest

from xtuner.catalog.names import names
from xtuner.catalog.render import render
from xtuner.cli.load import load_run
from xtuner.cli.main import main

NAME = "internlm2_chat_1_8b_qlora_alpaca_e3"


def test_the_frame(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-cfg"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "=" * 26 + "CONFIGS" + "=" * 27
    assert lines[-1] == "=" * 61
    assert lines[1:-1] == list(names())


def test_a_pattern_is_a_part_of_the_name_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-cfg", "-p", "INTERNLM2_1_8B"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["PATTERN: INTERNLM2_1_8B", "-" * 31]
    assert lines[3:-1] == [name for name in names() if "internlm2_1_8b" in name]
    assert main(["list-cfg", "-p", ""]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(names()) + 4


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("intrnlm2", "internlm2"), ("internlm2_chat_1_8b_qlora_alpca", NAME), ("zzz", "xtuner list-cfg")],
)
def test_no_hit_gets_the_nearest(pattern: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-cfg", "-p", pattern]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 4
    assert near in shown.err


def test_copying_keeps_edits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "folder"
    target = folder / f"{NAME}_copy.py"
    assert main(["copy-cfg", NAME, str(folder)]) == 0
    assert capsys.readouterr().out == f"Copy to {target}\n"
    assert target.read_text("utf-8") == render(NAME)
    assert main(["copy-cfg", NAME, str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [target.name], "nothing was edited, nothing to keep"
    for number, suffix in enumerate(("", "1")):
        target.write_text(f"# edited {number}\n", "utf-8")
        assert main(["COPY-CFG", NAME, str(folder)]) == 0
        assert (folder / f"{target.name}.bak{suffix}").read_text("utf-8") == f"# edited {number}\n"
    assert target.read_text("utf-8") == render(NAME)


def test_the_short_form(tmp_path: Path) -> None:
    assert main(["copy-cfg", NAME, str(tmp_path), "--yaml"]) == 0
    (target,) = tmp_path.iterdir()
    assert target.name == f"{NAME}_copy.yaml"
    assert len(target.read_text("utf-8").splitlines()) <= 15
    assert load_run(str(target)).spec == load_run(NAME).spec


def test_what_cannot_be_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["copy-cfg", NAME.replace("alpaca", "alpca"), str(tmp_path)]) == 1
    assert f"Did you mean {NAME}" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["copy-cfg", NAME, str(tmp_path / "file" / "deeper")]) == 1
    assert "cannot be written" in capsys.readouterr().err
