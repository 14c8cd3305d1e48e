"""Copies a built-in config into a folder, to edit it there."""

import argparse
import os
import shutil
from pathlib import Path

from xtuner.catalog.names import check_name
from xtuner.catalog.render import render_file
from xtuner.log import LOGGER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config_name", help="a name that xtuner list-cfg shows")
    parser.add_argument("save_dir", help="the folder to copy into; it is made when it is missing")
    parser.add_argument("--yaml", action="store_true", help="write the short form, with defaults left out")


def run(args: argparse.Namespace) -> int:
    """Write `NAME_copy.py` (or `.yaml`; `.json` for DeepSpeed); a file there that was edited is kept as `.bak`."""
    from xtuner.checkpoint.atomic import whole_file  # safetensors, which `--help` can do without
    from xtuner.checkpoint.folder import writing

    name = check_name(args.config_name)
    if args.yaml:
        from xtuner.cli.load import render_yaml  # pydantic, which the Python form can do without

        text, suffix = render_yaml(name), ".yaml"
    else:
        text, suffix = render_file(name)
    folder = Path(args.save_dir)
    target = folder / f"{name}_copy{suffix}"
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        edited = target.exists() and target.read_bytes() != text.encode()
    with whole_file(target) as file:
        file.write(text.encode())
        if edited:
            LOGGER.info("%s was edited; the old one is now %s", target, keep(target).name)
    print(f"Copy to {target}")
    return 0


def keep(target: Path) -> Path:
    """Give a file a second name, the first free one of `.bak`, `.bak1`, ..., which stays when the file is replaced."""
    number = 0
    while (kept := target.with_name(f"{target.name}.bak{number or ''}")).exists():
        number += 1
    try:
        os.link(target, kept)
    except OSError:  # a file system without second names
        shutil.copy2(target, kept)
    return kept
