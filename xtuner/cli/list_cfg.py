"""Lists the built-in configs by name."""

import argparse
import sys

from xtuner.catalog.names import names
from xtuner.errors import did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("-p", "--pattern", help="show only names that contain this (case does not matter)")


def run(args: argparse.Namespace) -> int:
    """Print the names between two rules; with a pattern that nothing contains, the nearest names on stderr."""
    known = names()
    found = [name for name in known if args.pattern is None or args.pattern.lower() in name.lower()]
    print(f"{'=' * 26}CONFIGS{'=' * 27}")
    if args.pattern is not None:
        print(f"PATTERN: {args.pattern}")
        print("-" * 31)
    for name in found:
        print(name)
    print("=" * 61)
    if not found:
        # a short pattern is nearer to a word of a name than to a whole one
        words = {word for name in known for word in name.split("_") if len(word) > 2}
        hint = did_you_mean(args.pattern, [*words, *known]) or "Type: xtuner list-cfg"
        print(f"No name contains {args.pattern}.\n{hint}", file=sys.stderr)
    return 0
