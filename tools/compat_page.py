"""Writes docs/compat.md: what becomes of every command line and every edit that the 0.1.x courses teach.

python tools/compat_page.py           write it
python tools/compat_page.py --check   exit 1 if the page is not what would be written

Each line is tried, not claimed: listing and copying run, other commands are parsed and their configs read as far as the
models and data of the courses are not needed.
"""

import argparse
import contextlib
import importlib
import io
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from compat_table import COMMANDS, EDITS, PROGRAMS, Command, Edit

from xtuner.catalog.render import render
from xtuner.cli import COMMANDS as MODULES
from xtuner.cli.load import load_run
from xtuner.cli.main import main as run_command
from xtuner.config.later import check_runnable
from xtuner.config.reader import read_text
from xtuner.config.spec import RunSpec
from xtuner.errors import UserError
from xtuner.legacy.run import to_run_spec
from xtuner.log import LOGGER

DEEPSPEED = "DeepSpeed is installed by itself: `pip install deepspeed`; without it the line stops with that sentence"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "compat.md"
HEAD = """# 0.1.x: what still works

The courses written for XTuner 0.1.9 to 0.1.23 have people type the command lines and make the edits below. This page is
written by `tools/compat_page.py`, which tries each of them; where something is not possible yet, it says what the
program says.

Everywhere different, and meant to be: the exit code says whether a command has worked; configs are read and never
executed; a pack holds whole samples, so a run over packed data has other iteration counts than 0.1.x; conversions write
safetensors and need neither a card nor the memory for the base model; no program code of a checkpoint runs unless you
say so.
"""


def main() -> int:
    """Write or check the page."""
    LOGGER.setLevel("ERROR")
    text = render_page()
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text("utf-8") != text)
    PAGE.write_text(text, "utf-8")
    return 0


def render_page() -> str:
    """Try everything and say what came of it."""
    lines = [HEAD, "## Command lines", "", "| command | | |", "|---|---|---|"]
    for command in COMMANDS:
        words = command.words.replace("|", "\\|")
        note = command.note or (DEEPSPEED if "--deepspeed" in words else "")
        lines.append(f"| `{words}` | {cells(try_command(command), note)} |")
    lines += ["", "## Edits of a config", "", "| edit | | |", "|---|---|---|"]
    lines += [f"| {one.what} | {cells(try_edit(one), one.note)} |" for one in EDITS]
    lines += ["", "## Other programs of the courses", "", "| program | here |", "|---|---|"]
    lines += [f"| `{program}` | {here} |" for program, here in PROGRAMS.items()]
    return "\n".join(lines) + "\n"


def cells(refusal: str | None, note: str) -> str:
    """Return the verdict and the reason."""
    if refusal is not None:
        return f"not yet | {refusal}"
    return f"works differently | {note}" if note else "works | "


def try_command(command: Command) -> str | None:
    """Return None when a command line is understood, else what the program says."""
    words = shlex.split(command.words.partition(" | ")[0])
    start = words.index("xtuner")
    env = dict(word.split("=", 1) for word in words[:start])
    words = words[start + 1 :]
    with tempfile.TemporaryDirectory() as folder, inside(Path(folder), env):
        try:
            return follow(words, command.config)
        except UserError as error:
            return error.what.replace("|", "\\|")


def follow(words: list[str], config: str) -> str | None:
    """Run or read one command line."""
    name, *rest = words
    if name in ("list-cfg", "copy-cfg", "version", "help"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = run_command(words)
        return None if code == 0 else said.getvalue().splitlines()[0]
    module = importlib.import_module(MODULES[name][0])
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    args = parser.parse_intermixed_args(rest) if name == "train" else parser.parse_args(rest)
    if config:
        Path("config.py").write_text(render(config), "utf-8")
        spec = load_run("config.py").spec
    if name == "train":
        check_runnable(spec)
    elif name == "convert" and config:
        check_runnable(spec, "model.vision")
    elif name == "chat":
        for option, what in getattr(module, "LATER", {}).items():
            if getattr(args, option):
                return f"{what} is not part of this version yet."
    return None


@contextlib.contextmanager
def inside(folder: Path, env: dict[str, str]) -> Iterator[None]:
    """Work in a folder, with further variables in the environment."""
    before, place = dict(os.environ), Path.cwd()
    os.environ.update(env)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(place)
        os.environ.clear()
        os.environ.update(before)


def read_edit(edit: Edit) -> RunSpec:
    """Read the built-in config of an edit, edited.

    Raises:
        UserError: what the program says about it.
    """
    text = render(edit.config)
    for old, new in edit.changes:
        assert old in text, f"{edit.config} has no {old!r}"
        text = text.replace(old, new)
    return to_run_spec(read_text(text, Path("config.py"), "python"))


def try_edit(edit: Edit) -> str | None:
    """Return None when an edited config means what was meant, else what the program says."""
    try:
        found: object = read_edit(edit).model_dump()
    except UserError as error:
        return error.what
    for key, wanted in edit.means.items():
        value = found
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]  # type: ignore[index]
        assert value == wanted, f"{edit.what}: {key} is {value!r}"
    return None


if __name__ == "__main__":
    sys.exit(main())
