"""Fine-tunes the built-in model, offline: it learns a name and an author, and you see its answers change."""

import argparse
import os
import sys
from pathlib import Path
from typing import Literal

from xtuner.program import program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--name", help="what the model shall call itself")
    parser.add_argument("--author", help="whose assistant it shall be")
    parser.add_argument("--lang", choices=("zh", "en"), help="language of the questions; found out when left out")
    parser.add_argument("--work-dir", type=Path, default=Path("xtuner_quickstart"), help="default: ./%(default)s")


def run(args: argparse.Namespace) -> int:
    """Run it; the exit code is 1 when the model did not take up its name."""
    from xtuner.apps.quickstart import quickstart
    from xtuner.apps.quickstart_words import WORDS

    lang = args.lang or guess_language(args.name, args.author)
    words = WORDS[lang]
    name = words.name if args.name is None else args.name
    author = words.author if args.author is None else args.author
    outcome = quickstart(name, author, lang, args.work_dir, program=program())
    if outcome.knows_itself:
        return 0
    print(words.failure.format(name=name, author=author), file=sys.stderr)
    return 1


def guess_language(*names: str | None) -> Literal["zh", "en"]:
    """Return zh when a name has Chinese characters or the system speaks Chinese, else en."""
    given = "".join(filter(None, names))
    system = next((os.environ[key] for key in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(key)), "")
    return "zh" if any("\u4e00" <= char <= "\u9fff" for char in given) or system.startswith("zh") else "en"
