"""The commands that are suggested can be typed as they stand, whether or not `.venv` is activated."""

import os
import sys
from pathlib import Path

import pytest

from xtuner.program import program


def install(folder: Path) -> Path:
    """Make what pip makes: a program beside a Python."""
    folder.mkdir(parents=True)
    for name in ("xtuner", "python"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder / "xtuner"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = install(tmp_path / "my project" / ".venv" / "bin")
    monkeypatch.chdir(tmp_path / "my project")
    monkeypatch.setattr(sys, "executable", str(script.parent / "python"))
    monkeypatch.setattr(sys, "argv", [str(script), "quickstart"])
    monkeypatch.setenv("PATH", "/usr/bin")
    return script


def test_not_activated(script: Path) -> None:
    assert program() == ".venv/bin/xtuner"


def test_activated(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin")
    assert program() == "xtuner"


def test_another_installation_comes_first(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = install(tmp_path / "other")
    monkeypatch.setenv("PATH", f"{other.parent}:{script.parent}")
    assert program() == ".venv/bin/xtuner"


def test_a_link_on_the_path_is_the_same_program(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "xtuner").symlink_to(script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert program() == "xtuner"


def test_far_away_and_with_spaces(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert program() == "'../my project/.venv/bin/xtuner'"
    assert Path(os.path.normpath("../my project/.venv/bin/xtuner")).samefile(script)


def test_as_a_module_and_as_a_library(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("/site-packages/xtuner/__main__.py", "/usr/bin/pytest", "-c", ""):
        monkeypatch.setattr(sys, "argv", [word])
        assert program() == ".venv/bin/xtuner"
    script.unlink()
    assert program() == "python -m xtuner"
