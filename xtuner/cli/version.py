"""Says which version of XTuner this is."""

import argparse

from xtuner.log import LOGGER
from xtuner.version import __version__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes none; further words are let through, as 0.1.x did."""
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Print the version as a log line."""
    LOGGER.info(__version__)
    return 0
