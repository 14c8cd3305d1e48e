"""Output files of commands: whole or not there, and what stood there before is kept unless `--force` says otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from xtuner.checkpoint.atomic import whole_file
from xtuner.checkpoint.folder import writing
from xtuner.cli.copy_cfg import keep


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """Give a binary file to write; when all went well it becomes `path`, and a file there becomes `path.bak`.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
    with whole_file(path) as file:
        yield file
        if path.exists() and not force:
            print(f"{path} was there already; the old one is now {keep(path).name}")
