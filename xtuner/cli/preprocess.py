"""Prepares public data for training: arXiv metadata, RefCOCO annotations."""

import argparse
import sys
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the kinds of data, and their arguments."""
    parser.set_defaults(mode=None, help_text=parser.format_help)
    modes = parser.add_subparsers(dest="mode", metavar="{arxiv,refcoco}")
    for name, (add, _, what) in MODES.items():
        own = modes.add_parser(name, help=what, description=what, allow_abbrev=False)
        add(own)
        own.add_argument("--force", action="store_true", help="overwrite; else a file that is there is kept as .bak")


def _add_arxiv(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src_file", type=Path, metavar="SRC", help="arxiv-metadata-oai-snapshot.json, from Kaggle")
    parser.add_argument("dst_file", type=Path, metavar="DST", help="the JSON file to write")
    parser.add_argument(
        "--categories", nargs="+", default=["cs.AI", "cs.CL", "cs.CV"], help="papers of any of these (%(default)s)"
    )
    parser.add_argument(
        "--start-date", type=_date, default="2020-01-01", metavar="DATE", help="updated then or later (%(default)s)"
    )


def _add_refcoco(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ann-path", type=Path, default=Path("data/refcoco_annotations"), help="default: %(default)s")
    parser.add_argument(
        "--image-path",
        type=Path,
        default=Path("data/llava_data/llava_images/coco/train2017"),
        help="the pictures of COCO; default: %(default)s",
    )
    parser.add_argument("--save-path", type=Path, default=Path(), help="the folder for train.json; default: here")


def run(args: argparse.Namespace) -> int:
    """Run one of them."""
    if args.mode is None:
        print(args.help_text(), file=sys.stderr, end="")
        return 2
    return MODES[args.mode][1](args)


def arxiv(args: argparse.Namespace) -> int:
    """Choose papers."""
    from xtuner.cli.new_file import new_file
    from xtuner.dataset.table.arxiv import choose_papers

    with new_file(args.dst_file, force=args.force) as out:
        count = choose_papers(args.src_file, out, categories=args.categories, start_date=args.start_date)
    print(f"Save to {args.dst_file}\n{count} items")
    return 0


def refcoco(args: argparse.Namespace) -> int:
    """Collect descriptions of things in pictures."""
    from xtuner.cli.new_file import new_file
    from xtuner.dataset.table.refcoco import collect

    target = args.save_path / "train.json"
    with new_file(target, force=args.force) as out:
        made = collect(args.ann_path, args.image_path, out)
    print(f"Save to {target}\n{made.rows} items")
    if made.copies:
        print(f"{made.copies} left out: the same words for the same picture once more.")
    if made.missing:
        print(f"{made.missing} of the {made.images} pictures are not in {args.image_path}.", file=sys.stderr)
    return 0


def _date(word: str) -> str:
    try:
        return date.fromisoformat(word).isoformat()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word} is no date like 2020-01-01") from error


MODES: Mapping[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int], str]] = {
    "arxiv": (_add_arxiv, arxiv, "choose papers from the metadata of arXiv"),
    "refcoco": (_add_refcoco, refcoco, "turn the annotations of RefCOCO into a train.json"),
}
"""Kind of data -> its arguments, its work, what it does."""
