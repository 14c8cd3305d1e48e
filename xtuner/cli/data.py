"""Looks at data and reworks it: show one row, find what is wrong, convert, split, repeat."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from xtuner.errors import UserError, did_you_mean

PREVIEW_CHARS = 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the mode; what follows is read by the mode, since key=value words may stand between its options."""
    listing = "\n".join(f"  {name:9}{what}" for name, (_, _, what, _) in MODES.items())
    parser.usage = "xtuner data MODE ..."
    parser.description = f"{__doc__}\n\n{listing}\n\nxtuner data MODE --help shows the arguments of a mode."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("mode", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(help_text=parser.format_help)


def run(args: argparse.Namespace) -> int:
    """Run one mode."""
    if args.mode is None:
        print(args.help_text(), file=sys.stderr, end="")
        return 2
    if args.mode not in MODES:
        raise UserError(
            f"xtuner data has no mode {args.mode}.", did_you_mean(args.mode, MODES) or f"It has: {', '.join(MODES)}.", 2
        )
    from xtuner.cli.main import Parser  # which has imported this module by name

    add, work, what, usage = MODES[args.mode]
    parser = Parser(
        prog=f"xtuner data {args.mode}",
        usage=f"xtuner data {args.mode} {usage} [options]",
        description=f"{what[0].upper()}{what[1:]}.",
        allow_abbrev=False,
    )
    add(parser)
    return work(parser.parse_intermixed_args(args.words))


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="CONFIG | FILE | key=value", help="a config, or data files")
    parser.add_argument("--model", metavar="PATH", help="the model whose tokenizer is used; the config's when left out")
    parser.add_argument("--template", metavar="NAME", help="the chat template; found out when it is left out")


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    parser.add_argument("--index", type=int, default=1, metavar="N", help="the row, counted from 1 (%(default)s)")
    parser.add_argument(
        "--source", type=int, default=1, metavar="N", help="of several sources the one to look at (%(default)s)"
    )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE", help="xlsx, csv, tsv, json, jsonl or parquet")
    parser.add_argument("target", type=Path, metavar="OUT", help=".jsonl: a row per line; .json: a list")
    parser.add_argument("--question", metavar="COLUMN", help="the column that is asked")
    parser.add_argument("--answer", metavar="COLUMN", help="the column that is learned")
    parser.add_argument("--system", default="", metavar="TEXT", help="a system text for rows that have none")
    parser.add_argument("--format", metavar="NAME", help="a row format, instead of the two columns")
    _add_force(parser)


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the data file")
    parser.add_argument("ratio", metavar="RATIO", help="7:3 makes train and test; 8:1:1 train, validation and test")
    parser.add_argument("--seed", type=int, default=0, help="the same seed divides alike (%(default)s)")
    _add_force(parser)


def _add_repeat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the data file")
    parser.add_argument("times", type=int, metavar="N", help="how often its rows are written")
    parser.add_argument("target", type=Path, metavar="OUT", help="the file to write")
    _add_force(parser)


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite; else a file that is there is kept as .bak")


def show(args: argparse.Namespace) -> int:
    """Print one row as training sees it."""
    from rich.console import Console

    from xtuner.cli.load_data import load_data
    from xtuner.dataset.inspection import render, sample

    data = load_data(args.words, model=args.model, template=args.template)
    seen = sample.see_row(
        data.spec, data.tokenizer, source=args.source, number=args.index, seed=data.seed, pairs=data.pairs
    )
    render.show(seen, Console(highlight=False))
    return 0


def lint(args: argparse.Namespace) -> int:
    """Print what is wrong; the exit code is 1 when a run would be pointless."""
    from xtuner.cli.load_data import load_data
    from xtuner.dataset.inspection.lint import lint

    data = load_data(args.words, model=args.model, template=args.template)
    findings = lint(data.spec, data.tokenizer, seed=data.seed, pairs=data.pairs)
    print(*findings.lines(), sep="\n")
    return 1 if findings.pointless else 0


def convert(args: argparse.Namespace) -> int:
    """Write conversations; print what the first looks like, and what was left out."""
    from xtuner.cli.new_file import new_file
    from xtuner.dataset.table.convert import Reading, convert

    if (args.question is None) != (args.answer is None):
        raise UserError("--question and --answer go together.", "Name both columns, or none of them.", exit_code=2)
    if args.question is not None and args.format is not None:
        raise UserError("Both --format and --question.", "Leave one of them out.", exit_code=2)
    reading = Reading(args.question, args.answer, args.format, args.system)
    with new_file(args.target, force=args.force) as out:
        done = convert(args.source, args.target, out, reading)
    first = json.dumps(done.first, ensure_ascii=False, indent=2)
    print(f"The first row ({done.format}):")
    print(first if len(first) <= PREVIEW_CHARS else f"{first[:PREVIEW_CHARS]} ...")
    for reason, tally in done.skipped.items():
        print(f"Left out: {reason}: {tally}.")
    print(*done.notes, f"{args.target}: {done.written:,} of {done.rows:,} rows.", sep="\n")
    return 0


def split(args: argparse.Namespace) -> int:
    """Write the parts beside the file; print their names and sizes."""
    from xtuner.cli.new_file import new_file
    from xtuner.dataset.table.split import part_names, read_ratio, split

    shares = read_ratio(args.ratio)
    targets = part_names(args.file, len(shares))
    with ExitStack() as stack:
        outs = [stack.enter_context(new_file(target, force=args.force)) for target in targets]
        done = split(args.file, shares, outs, seed=args.seed)
    for target, size in zip(targets, done.sizes, strict=True):
        print(f"{target}: {size:,} rows")
    print(f"{sum(done.sizes):,} rows in all, none left out; drawn with the seed {args.seed}.")
    if done.shared:
        print(
            f"{done.shared:,} rows outside {targets[0].name} are copies of rows in it: "
            "a score on them says what was remembered."
        )
    return 0


def repeat(args: argparse.Namespace) -> int:
    """Write the rows again and again."""
    from xtuner.cli.new_file import new_file
    from xtuner.dataset.table.split import repeat

    if args.times < 1:
        raise UserError(f"{args.times} is no number of times.", "Give 1 or more.", exit_code=2)
    with new_file(args.target, force=args.force) as out:
        rows, written = repeat(args.file, args.times, args.target, out)
    print(f"{args.target}: {rows:,} rows {args.times:,} times, {written:,} in all.")
    return 0


MODES: Mapping[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int], str, str]] = {
    "show": (_add_show, show, "one row as training sees it, what is learned in colour", "CONFIG|FILE [key=value ...]"),
    "lint": (_add_source, lint, "everything that is wrong with the rows", "CONFIG|FILE ... [key=value ...]"),
    "convert": (_add_convert, convert, "a table -> conversations", "FILE OUT --question COLUMN --answer COLUMN"),
    "split": (_add_split, split, "a file -> train and test", "FILE 7:3"),
    "repeat": (_add_repeat, repeat, "a file -> the same rows N times", "FILE N OUT"),
}
"""Mode -> its arguments, its work, what it does, what is typed after it."""
