"""Lists the row formats by the names that 0.1.x gave them."""

import argparse
import sys

from xtuner.dataset import FORMATS
from xtuner.legacy.vocabulary import MAP_FUNCTIONS

UNLISTED = ("intel_orca_dpo", "orpo_dpo_mix_40k")
"""Formats of preference data, which 0.1.x did not list."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes none."""


def run(args: argparse.Namespace) -> int:
    """Print the names between two rules; those that are new stand on stderr."""
    names = [name.removesuffix("_map_fn").replace("assitant", "assitan") for name in MAP_FUNCTIONS]
    names = [name for name in names if name not in UNLISTED]
    print(f"{'=' * 22}DATASET_FORMAT{'=' * 22}", *names, "=" * 58, sep="\n")
    new = [name for name in FORMATS if name not in names]
    print(f"New in this version: {', '.join(new)}. A format that is left out is recognised.", file=sys.stderr)
    return 0
