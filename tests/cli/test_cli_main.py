"""The entry point: commands, help, version, errors and exit codes."""

import argparse
import re
import subprocess
import sys
from types import ModuleType

import pytest

from xtuner.cli import COMMANDS, LATER
from xtuner.cli.main import main
from xtuner.errors import UserError
from xtuner.version import __version__


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "xtuner", *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("word", ["version", "-v", "--version", "VERSION"])
def test_version_is_a_log_line(word: str) -> None:
    done = run(word)
    assert re.fullmatch(rf"\d\d/\d\d \d\d:\d\d:\d\d - xtuner - INFO - {re.escape(__version__)}\n", done.stdout)
    assert done.returncode == 0


@pytest.mark.parametrize("words", [(), ("help",), ("-h",), ("--help",), ("HELP",)])
def test_help_names_every_command(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f"    {command} " in shown


def test_a_typo_gets_the_nearest_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian", "x.py"]) == 2
    assert capsys.readouterr().err == "There is no command trian.\nDid you mean train?\n"
    assert main(["frobnicate"]) == 2
    assert "Type: xtuner help" in capsys.readouterr().err


def test_commands_of_later_versions_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    for command in LATER:
        assert main([command]) == 2
        assert "not part of this version yet.\nType: xtuner help" in capsys.readouterr().err
        assert command not in COMMANDS


def test_usage_mistakes_are_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["copy-cfg", "only_a_name"]) == 2
    assert main(["list-cfg", "--nonsense"]) == 2
    said = capsys.readouterr().err
    assert said.endswith("Unrecognized arguments: --nonsense.\nType: xtuner list-cfg --help\n")
    assert len(said.splitlines()) == 4, "a sentence and what to type, each time"
    assert main(["convert", "mergee"]) == 2
    assert "Type: xtuner convert --help" in capsys.readouterr().err


class Fake(ModuleType):
    """A command that fails as it is told."""

    error: BaseException

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Take none."""

    def run(self, args: argparse.Namespace) -> int:
        """Fail."""
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("It broke.", "Mend it."), 1, "It broke.\nMend it.\n"),
        (UserError("It broke."), 1, "It broke.\n"),
        (UserError("Not so.", exit_code=2), 2, "Not so.\n"),
        (ValueError("odd\nmore"), 1, "ValueError: odd\nXTUNER_DEBUG=1 shows where.\n"),
        (MemoryError(), 1, "The memory ran out.\n"),
        (KeyboardInterrupt(), 130, "\nStopped.\n"),
    ],
)
def test_errors_are_sentences(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake("xtuner.cli.list_cfg")
    fake.error = error
    monkeypatch.setitem(sys.modules, "xtuner.cli.list_cfg", fake)
    assert main(["list-cfg"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(said)
    assert "Traceback" not in shown
    monkeypatch.setenv("XTUNER_DEBUG", "1")
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            main(["list-cfg"])


def test_a_reader_that_stops_early_is_no_failure_to_shout_about() -> None:
    done = subprocess.run(
        f"{sys.executable} -m xtuner list-cfg | head -n 1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip("=\n") == "CONFIGS"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_reading_a_config_needs_no_torch() -> None:
    code = (
        "import sys; from xtuner.cli.load import load_run; "
        "load_run('internlm2_chat_1_8b_qlora_alpaca_e3', overrides=['lr=1e-4']); "
        "assert not {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
