"""Measures on this machine that training keeps its laws: the same losses however a run is cut, stopped and sped up."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xtuner.errors import UserError

if TYPE_CHECKING:
    from xtuner.config.spec import RunSpec

WIDTHS = (20, 52, 12, 12)
BUILT_IN = ["data.max_length=128", "optim.lr=1e-4"]
"""Settings for the built-in model, which is small."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the run that is measured")
    parser.add_argument("--model", help="a folder or a hub id; the built-in model when it is left out")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="files to train on; built-in ones when left out")
    parser.add_argument("--template", help="the chat template; found out from the model when it is left out")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="store the frozen weights in so many bits (QLoRA)")


def run(args: argparse.Namespace) -> int:
    """Measure and print a table; the exit code is 1 when a law was broken."""
    settings = [*args.settings, *(word for word in args.data or [] if "=" in word and not Path(word).exists())]
    for word in settings:
        if "=" not in word:
            raise UserError(f"{word} is no setting.", "Settings are written key=value.", exit_code=2)
    files = [word for word in args.data or [] if word not in settings]
    with tempfile.TemporaryDirectory(prefix="xtuner-selftest-") as name:
        folder = Path(name)
        spec = build_spec(args.model, files, args.template, args.bits, settings, folder)
        return measure(spec, folder)


def build_spec(
    model: str | None, files: list[str], template: str | None, bits: int | None, settings: list[str], folder: Path
) -> "RunSpec":
    """Describe the run that is measured: what `train --model --data` would be, with everything it writes in `folder`.

    Raises:
        UserError: no such template, or a setting that is none.
    """
    from xtuner.apps.identity import build_self_knowledge, write_self_knowledge
    from xtuner.apps.quickstart import built_in_model
    from xtuner.cli.train import choose_spec
    from xtuner.config.spec_override import override_spec

    if not files:
        files = [str(folder / "data.json")]
        write_self_knowledge(folder / "data.json", build_self_knowledge("XTuner", "you", "en"))
    spec = choose_spec(model or str(built_in_model()), files, template, bits)
    return override_spec(spec, [f"data.cache={folder / 'cache'}", *([] if model else BUILT_IN), *settings])


def measure(spec: "RunSpec", folder: Path) -> int:
    """Print each law as soon as it is measured; returns the exit code."""
    from rich.console import Console

    from xtuner.engine.selftest.measure import Measured
    from xtuner.engine.selftest.suite import measure_laws

    began, broken, console = time.monotonic(), 0, Console(highlight=False)
    print(f"Measuring on {spec.model.path}; this takes minutes.")
    print(_line("LAW", "MEASURED", "DIFFERENCE", "ALLOWED", ""))
    with console.status("beginning") as status:
        for what, found in measure_laws(spec, folder / "runs"):
            if found is None:
                status.update(f"{what} ({time.monotonic() - began:.0f} s)")
            elif isinstance(found, Measured):
                broken += not found.holds
                verdict = "pass" if found.holds else "FAIL"
                console.out(
                    _line(found.law, found.what, f"{found.difference:.2g}", f"{found.limit:.2g}", verdict),
                    highlight=False,
                )
            else:
                console.out(found, highlight=False)
    seconds = f"{time.monotonic() - began:.0f} s"
    if broken:
        print(f"{broken} broken, in {seconds}. Please report this table with your versions and your card.")
        return 1
    print(f"All laws hold, in {seconds}.")
    return 0


def _line(*cells: str) -> str:
    widths = (*WIDTHS, 0)
    return "  ".join(
        cell.rjust(width) if index in (2, 3) else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()
