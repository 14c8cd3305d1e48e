"""Copies a built-in config into a folder, to edit it there."""

import argparse
from pathlib import Path

from xtuner.catalog.names import check_name
from xtuner.catalog.render import render_file
from xtuner.errors import UserError
from xtuner.log import LOGGER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config_name", help="a name that xtuner list-cfg shows")
    parser.add_argument("save_dir", help="the folder to copy into; it is made when it is missing")
    parser.add_argument("--yaml", action="store_true", help="write the short form, with defaults left out")


def run(args: argparse.Namespace) -> int:
    """Write `NAME_copy.py` (or `.yaml`; `.json` for DeepSpeed); a file there that was edited is kept as `.bak`."""
    name = check_name(args.config_name)
    if args.yaml:
        from xtuner.cli.load import render_yaml  # pydantic, which the Python form can do without

        text, suffix = render_yaml(name), ".yaml"
    else:
        text, suffix = render_file(name)
    folder = Path(args.save_dir)
    target = folder / f"{name}_copy{suffix}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.read_text(encoding="utf-8") != text:
            kept = keep(target)
            LOGGER.info("%s was edited; the old one is now %s", target, kept.name)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}.", "Choose another folder.") from error
    print(f"Copy to {target}")
    return 0


def keep(target: Path) -> Path:
    """Rename a file to the first free name of `.bak`, `.bak1`, ...; returns it."""
    number = 0
    while (kept := target.with_name(f"{target.name}.bak{number or ''}")).exists():
        number += 1
    return target.rename(kept)
