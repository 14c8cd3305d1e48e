"""Talks to a model in the terminal: a model folder, a base with an adapter, or the folder of a run."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from xtuner.errors import ForeignCode, UserError

if TYPE_CHECKING:
    from xtuner.generate.local import LocalChat

LATER = {
    "llava": "--llava (models that see pictures)",
    "visual_encoder": "--visual-encoder (models that see pictures)",
    "visual_select_layer": "--visual-select-layer (models that see pictures)",
    "image": "--image (models that see pictures)",
    "with_plugins": "--with-plugins (tools)",
    "lagent": "--lagent (agents)",
}
"""Options of 0.1.x that this version does not have yet."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    from xtuner.conversation.builtin import find_system, find_template

    parser.add_argument("model", help="a model folder, a hub id, or the folder of a run")
    parser.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter for the model")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this one question and exit")
    parser.add_argument(
        "--prompt-template",
        type=lambda word: _known(find_template, word),
        metavar="NAME",
        help="how a conversation is spelled; found out from the run or the model when it is left out",
    )
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--system", metavar="TEXT", help="the system text")
    system.add_argument(
        "--system-template",
        type=lambda word: _known(find_system, word),
        metavar="NAME",
        help="a system text by name",
    )
    parser.add_argument("--bot-name", metavar="NAME", help="the name in the system text, and before each answer")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="store the weights in so many bits")
    parser.add_argument(
        "--torch-dtype",
        choices=("auto", "fp16", "bf16", "fp32"),
        default="auto",
        help="auto: what the device does best",
    )
    parser.add_argument("--offload-folder", metavar="FOLDER", help="for a model that is larger than the memory")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the program code of a model whose kind is not known here; its files are named",
    )
    parser.add_argument("--no-streamer", action="store_true", help="show an answer when it is complete")
    parser.add_argument("--show-special-tokens", action="store_true", help="show them inside answers")
    parser.add_argument(
        "--stop-words", action="extend", nargs="+", default=[], metavar="TEXT", help="further texts that end an answer"
    )
    for old in ("--command-stop-word", "--answer-stop-word"):  # v0.1.9
        parser.add_argument(old, dest="stop_words", action="extend", nargs=1, help=argparse.SUPPRESS)
    parser.add_argument("--max-new-tokens", type=int, default=2048, help="length limit of an answer (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.1, help="0: always the likeliest word (%(default)s)")
    parser.add_argument("--top-k", type=int, default=40, help="draw among so many words, 0: all (%(default)s)")
    parser.add_argument("--top-p", type=float, default=0.75, help="draw among this share of probability (%(default)s)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeat less (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answer (%(default)s)")
    for flag in ("--llava", "--visual-encoder", "--visual-select-layer", "--image"):
        parser.add_argument(flag, help=argparse.SUPPRESS)
    parser.add_argument("--with-plugins", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--lagent", action="store_const", const=True, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Load the model, then talk."""
    for option, words in LATER.items():
        if getattr(args, option) is not None:
            raise UserError(f"{words} is not part of this version yet.", "Leave it out.", exit_code=2)
    if args.prompt is not None and not args.prompt.strip():
        raise UserError("--prompt is empty.", "Write the question after it.", exit_code=2)
    if args.prompt is None and sys.stdin is None:
        raise UserError("There is no input to read questions from.", "Ask one with --prompt.", exit_code=2)
    from xtuner.apps.repl import ask, talk
    from xtuner.cli.paths import check_model
    from xtuner.conversation.builtin import find_system
    from xtuner.conversation.chat_model import Sampling
    from xtuner.generate.source import find_source

    sampling = Sampling(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop_words=tuple(args.stop_words),
    )
    system = args.system or ""
    if args.system_template:
        system = find_system(args.system_template, bot_name=args.bot_name or "BOT")
    source = find_source(args.model, args.adapter)
    check_model(source.model.path, source.model.adapter)
    model = load(args)
    if system and model.template is not None and model.template.system is None:
        raise UserError(
            f"The template {model.template.name} has no place for a system text.",
            "Leave --system and --system-template out, or choose another --prompt-template.",
            exit_code=2,
        )
    if args.prompt is not None:
        ask(model, args.prompt, sampling, system=system, streaming=not args.no_streamer)
        return 0
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # some Pythons are built without it
            import readline  # noqa: F401  # gives `input` line editing and a history
    talk(model, sampling, system=system, bot_name=args.bot_name or "", streaming=not args.no_streamer)
    return 0


def load(args: argparse.Namespace) -> "LocalChat":
    """Load the model that the words name."""
    from xtuner.generate.load import load_chat  # torch: wrong paths need not wait for it

    to_stderr = args.prompt is not None  # so that `--prompt` writes the answer alone to stdout
    try:
        return load_chat(
            args.model,
            adapter=args.adapter,
            bits=args.bits,
            template=args.prompt_template,
            dtype=args.torch_dtype,
            offload_folder=args.offload_folder,
            show_special=args.show_special_tokens,
            trust_remote_code=args.trust_remote_code,
            tell=lambda text: print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True),
        )
    except ForeignCode as error:
        raise UserError(error.what, "If you trust it, add: --trust-remote-code") from error


def _known(find: Any, word: str) -> str:
    """Return a name that `find` knows; argparse says what is wrong with another, and exits with 2."""
    try:
        find(word)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return word
