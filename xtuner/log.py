"""What is said while working: one logger, to the screen and to a run's log file.

The screen is for people (plain lines through `say`); a log file carries times and levels.
"""

import io
import logging
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

LOGGER = logging.getLogger("xtuner")
FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"


def setup_screen() -> None:
    """Send our messages to stdout; called once by the command line."""
    if LOGGER.handlers:
        return
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a screen without Chinese shows question marks instead of failing
            stream.reconfigure(errors="replace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(FORMAT, "%m/%d %H:%M:%S"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


class LogFile(logging.FileHandler):
    """A log file whose disk may fill up: the line is lost, and whoever writes what matters says so."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback for a line that could not be written."""

    def close(self) -> None:
        """Close the file, also when its last lines cannot be written."""
        with suppress(OSError):
            super().close()


def add_log_file(path: Path) -> logging.Handler:
    """Copy every further message into `path`; returns the handler for `close_log_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT, "%Y/%m/%d %H:%M:%S"))
    LOGGER.addHandler(handler)
    return handler


def close_log_file(handler: logging.Handler) -> None:
    """Stop writing to the file that `add_log_file` opened."""
    LOGGER.removeHandler(handler)
    handler.close()


def quiet_libraries() -> None:
    """Keep messages of libraries that a user can do nothing about off the screen.

    Uses the switches the libraries offer; must run before they are imported.
    `XTUNER_DEBUG=1` leaves everything audible.
    """
    if os.environ.get("XTUNER_DEBUG") == "1":
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    warnings.filterwarnings("ignore")
    for name in ("transformers", "datasets", "huggingface_hub", "bitsandbytes", "peft", "torch", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
