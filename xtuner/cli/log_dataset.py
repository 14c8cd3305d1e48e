"""Prints the first training sample of a config, as 0.1.x did; `xtuner data show` tells more."""

import argparse

SHOWN = ("text", "masked_text", "input_ids", "labels", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("words", nargs="+", metavar="CONFIG | key=value", help="a config, and settings of the run")
    parser.add_argument("--show", choices=SHOWN, default="text", help="what to print (%(default)s)")
    parser.add_argument("--model", metavar="PATH", help="a model whose tokenizer is used instead of the config's")


def run(args: argparse.Namespace) -> int:
    """Prepare the data and print the first sample (a pack, if the run packs)."""
    from xtuner.cli.load_data import load_data
    from xtuner.dataset.inspection.steps import log_first

    data = load_data(args.words, model=args.model)
    for line in log_first(data.spec, data.tokenizer, args.show, seed=data.seed, pairs=data.pairs):
        print(line)
    return 0
