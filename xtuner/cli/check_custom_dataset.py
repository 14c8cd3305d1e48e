"""Takes a few rows of a config's data through every step of preparation and prints each, as 0.1.x did."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("words", nargs="+", metavar="CONFIG | key=value", help="a config, and settings of the run")
    parser.add_argument("--model", metavar="PATH", help="a model whose tokenizer is used instead of the config's")


def run(args: argparse.Namespace) -> int:
    """Print the first of the rows after each step."""
    from xtuner.cli.load_data import load_data
    from xtuner.dataset.inspection.steps import check_steps

    data = load_data(args.words, model=args.model)
    for line in check_steps(data.spec, data.tokenizer, seed=data.seed, pairs=data.pairs):
        print(line)
    return 0
