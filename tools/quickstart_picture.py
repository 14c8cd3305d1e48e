"""Runs the quickstart and draws what the screen shows: docs/quickstart.svg.

python tools/quickstart_picture.py
"""

import contextlib
import logging
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from xtuner.apps.quickstart import quickstart
from xtuner.log import LOGGER, quiet_libraries

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "quickstart.svg"
SHOWN = ("samples in", "Iter(train)", "Checked against")
"""Log lines worth a place in the picture."""


class ToConsole(logging.Handler):
    """Prints chosen log lines where the rest of the quickstart is printed."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        if any(words in record.getMessage() for words in SHOWN):
            self.console.print(Text(record.getMessage()))


def main() -> None:
    """Run and draw."""
    quiet_libraries()
    console = Console(record=True, width=132, highlight=False)
    LOGGER.addHandler(ToConsole(console))
    LOGGER.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        quickstart("Nova", "the Harbour Lab", "en", Path("xtuner_quickstart"), console=console)
    PICTURE.write_text(console.export_svg(title="xtuner quickstart --name Nova --author 'the Harbour Lab'"), "utf-8")


if __name__ == "__main__":
    main()
