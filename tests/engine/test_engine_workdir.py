"""The work dir: names that users' scripts rely on, and refusals before anything is trained."""

import json
import os
import re
import subprocess
import sys

import pytest

from xtuner.engine.workdir import WorkDir
from xtuner.errors import UserError
from xtuner.log import LOGGER


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_tree_of_the_course(tmp_path):
    work = WorkDir(tmp_path / "a" / "b", "my_copy.py", "x = '模型'\n")
    LOGGER.info("hello %d", 1)
    work.note("only here")
    work.write_scalars({"lr": 0.1, "iter": 10})
    work.write_answers(384, ["one", "two"])
    work.close()
    stamp = work.timestamp
    assert re.fullmatch(r"\d{8}_\d{6}", stamp)
    assert tree(tmp_path / "a" / "b") == sorted(
        [
            "my_copy.py",
            f"{stamp}/{stamp}.log",
            f"{stamp}/vis_data/{stamp}.json",
            f"{stamp}/vis_data/config.py",
            f"{stamp}/vis_data/eval_outputs_iter_383.txt",
            f"{stamp}/vis_data/scalars.json",
        ]
    )
    assert work.config.read_text() == (work.visual / "config.py").read_text() == "x = '模型'\n"
    assert re.match(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d - xtuner - INFO - hello 1\n", work.log.read_text())
    assert "only here" in work.log.read_text()
    for name in (f"{stamp}.json", "scalars.json"):
        assert json.loads((work.visual / name).read_text()) == {"lr": 0.1, "iter": 10}
    assert (work.visual / "eval_outputs_iter_383.txt").read_text() == "Eval output 1:\none\n\nEval output 2:\ntwo\n\n"
    assert work.checkpoint(500).name == "iter_500.pth"
    assert work.checkpoint(3, by_epoch=True).name == "epoch_3.pth"


def test_two_runs_in_one_second_have_two_folders(tmp_path):
    first = WorkDir(tmp_path, "a.yaml", "")
    first.close()
    second = WorkDir(tmp_path, "a.yaml", "")
    second.close()
    assert first.timestamp < second.timestamp
    assert (second.visual / "config.yaml").is_file()


def test_a_folder_that_goes_is_not_seen_in_parts(tmp_path, monkeypatch):
    """Killed while the parts of an old checkpoint are deleted: what is left has no name of a checkpoint."""
    work = WorkDir(tmp_path, "a.yaml", "")
    for name in ("iter_5.pth", "iter_6.pth"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("x")
    work.remove("iter_6.pth")
    seen = []
    monkeypatch.setattr("shutil.rmtree", lambda path: seen.append(path.name))
    work.remove("iter_5.pth")
    monkeypatch.undo()
    assert seen == [".iter_5.pth.part"]
    work.close()
    assert not list(tmp_path.glob("*.pth"))
    WorkDir(tmp_path, "a.yaml", "").close()
    assert not list(tmp_path.glob(".iter*"))


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / ".iter_5.pth.part").write_text("half")
    WorkDir(tmp_path, "a.yaml", "").close()
    assert not list(tmp_path.glob(".*"))


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "work").write_text("")
    with pytest.raises(UserError, match="is a file"):
        WorkDir(tmp_path / "work", "a.yaml", "")
    with pytest.raises(UserError, match="cannot be written"):
        WorkDir(tmp_path / "work" / "deeper", "a.yaml", "")


READ_ONLY = """
import os, sys
from pathlib import Path
from xtuner.engine.workdir import WorkDir
from xtuner.errors import UserError
if os.getuid() == 0:
    os.setuid(65534)  # root may write anywhere
try:
    WorkDir(Path(sys.argv[1]), "a.yaml", "")
except UserError as error:
    print(error)
"""


def test_read_only_folder(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(folder, 0o755)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    result = subprocess.run([sys.executable, "-c", READ_ONLY, str(locked)], capture_output=True, text=True, timeout=60)
    if "ModuleNotFoundError" in result.stderr or "PermissionError" in result.stderr:
        pytest.skip("another user cannot read this installation")
    assert "cannot be written" in result.stdout, result.stderr


def test_no_room_for_a_checkpoint(tmp_path):
    work = WorkDir(tmp_path, "a.yaml", "")
    with pytest.raises(UserError, match="are free"):
        work.require_space(10**18)
    work.require_space(1)
    work.close()
