"""Turns checkpoints into what other programs open: pth_to_hf, merge, split."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from xtuner.errors import ForeignCode, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three ways of converting, and their arguments."""
    parser.set_defaults(mode=None, help_text=parser.format_help)
    modes = parser.add_subparsers(dest="mode", metavar="{pth_to_hf,merge,split}")
    for name, (add, what, usages) in MODES.items():
        usage = "\n       ".join(f"xtuner convert {name} {words} [options]" for words in usages)
        add(modes.add_parser(name, help=what, description=what, usage=usage, allow_abbrev=False))


def _add_pth_to_hf(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the config of the training: file, built-in name, run folder")
    parser.add_argument("paths", nargs="+", metavar="PTH SAVE_DIR", help="of a run folder the last checkpoint is taken")
    parser.add_argument("--fp32", action="store_true", help="the same as --dtype float32")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="how weights are written (float16, as 0.1.x did)"
    )
    _add_files(parser)
    _add_trust(parser)
    parser.add_argument(
        "--save-format", choices=("xtuner", "official", "huggingface"), default="xtuner", help=argparse.SUPPRESS
    )
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the config")


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="the folders, as above")
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="where to compute (%(default)s)"
    )
    parser.add_argument(
        "--prompt-template", metavar="NAME", help="the chat template to write down; else the trained one"
    )
    _add_files(parser)
    _add_trust(parser)
    parser.add_argument("--is-clip", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--offload-folder", help=argparse.SUPPRESS)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the program code of a model whose kind is not known here; its files are named",
    )


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", metavar="SRC", help="the folder of a model")
    parser.add_argument("dst", metavar="DST", help="the folder to write")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-shard-size", default="2GB", metavar="SIZE", help="largest file, such as 500MB (%(default)s)"
    )
    parser.add_argument(
        "--safe-serialization",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write safetensors; --no-safe-serialization writes .bin",
    )


MODES: Mapping[str, tuple[Callable[[argparse.ArgumentParser], None], str, tuple[str, ...]]] = {
    "pth_to_hf": (
        _add_pth_to_hf,
        "a training checkpoint -> an adapter or a whole model",
        ("CONFIG PTH SAVE_DIR", "RUN_FOLDER SAVE_DIR"),
    ),
    "merge": (
        _add_merge,
        "a base model and an adapter -> one model",
        ("MODEL ADAPTER SAVE_DIR", "RUN_FOLDER SAVE_DIR"),
    ),
    "split": (_add_split, "a model -> one file per weight", ("SRC DST",)),
}
"""Mode -> its arguments, what it does, what is typed after it."""


def run(args: argparse.Namespace) -> int:
    """Run one mode."""
    if args.mode is None:
        print(args.help_text(), file=sys.stderr, end="")
        return 2
    try:
        {"pth_to_hf": pth_to_hf, "merge": merge, "split": split}[args.mode](args)
    except ForeignCode as error:
        raise UserError(error.what, "If you trust it, add: --trust-remote-code") from error
    print("All done!")
    return 0


def pth_to_hf(args: argparse.Namespace) -> None:
    """`CONFIG PTH SAVE_DIR`, or `RUN_FOLDER SAVE_DIR`."""
    from xtuner.checkpoint.run_record import is_run_folder, nothing_saved
    from xtuner.cli.load import find_config, load_run
    from xtuner.cli.paths import check_model, check_state

    if args.save_format != "xtuner":
        raise UserError(
            f"--save-format {args.save_format} is for models that see pictures, which this version does not have yet.",
            "Leave it out.",
            exit_code=2,
        )
    if args.fp32 and args.dtype not in (None, "float32"):
        raise UserError(f"Both --fp32 and --dtype {args.dtype}.", "Leave one of them out.", exit_code=2)
    config = Path(args.config)
    if len(args.paths) == 1 and is_run_folder(config):
        from xtuner.checkpoint.state import find_last

        last = find_last(config)
        if last is None:
            raise nothing_saved(config)
        pth, save_dir = last, args.paths[0]
        print(f"Weights: {pth}")
    elif len(args.paths) == 2:
        pth, save_dir = args.paths
        check_state(pth)
    else:
        raise UserError(
            f"{1 + len(args.paths)} paths were given.",
            "Type: xtuner convert pth_to_hf CONFIG PTH SAVE_DIR",
            exit_code=2,
        )
    loaded = load_run(args.config, cfg_options=args.cfg_options)
    if loaded.spec.model.lora is None:  # an adapter can do without its base
        check_model(loaded.spec.model.path)
    text, _, kind = find_config(args.config)
    is_python = kind == "python"
    dtype = "float32" if args.fp32 else args.dtype or "float16"
    if not args.fp32 and not args.dtype:
        print("Weights are written as float16, as 0.1.x did; --fp32 or --dtype bfloat16 change that.")
    from xtuner.export import to_hf  # torch: what is refused above need not wait for it

    to_hf.pth_to_hf(
        loaded.spec,
        Path(pth),
        Path(save_dir),
        dtype=dtype,
        max_shard_size=args.max_shard_size,
        safe=args.safe_serialization,
        copy=("xtuner_config.py", text) if is_python else ("xtuner_config.yaml", loaded.dump_text),
        trust_remote_code=args.trust_remote_code,
        tell=print,
    )


def merge(args: argparse.Namespace) -> None:
    """`MODEL ADAPTER SAVE_DIR`, or `RUN_FOLDER SAVE_DIR`."""
    from xtuner.checkpoint.run_record import is_run_folder
    from xtuner.cli.paths import check_model

    if args.is_clip:
        raise UserError(
            "--is-clip is for models that see pictures, which this version does not have yet.",
            "Leave it out.",
            exit_code=2,
        )
    if args.offload_folder:
        print("--offload-folder is not needed any more: merging takes little memory.")
    options = {
        "max_shard_size": args.max_shard_size,
        "device": args.device,
        "safe": args.safe_serialization,
        "template": args.prompt_template,
        "trust_remote_code": args.trust_remote_code,
        "tell": print,
    }
    if len(args.paths) == 2 and is_run_folder(Path(args.paths[0])):
        from xtuner.export import merge as merging

        merging.merge_run(Path(args.paths[0]), Path(args.paths[1]), **options)
    elif len(args.paths) == 3:
        check_model(args.paths[0], args.paths[1])
        from xtuner.export import merge as merging  # torch: wrong paths need not wait for it

        merging.merge(args.paths[0], args.paths[1], Path(args.paths[2]), **options)
    else:
        named = len(args.paths)
        run = f"{args.paths[0]} is not the folder of a run" if named == 2 else f"It takes 2 or 3 paths, not {named}"
        raise UserError(
            f"{run}.", "Type: xtuner convert merge MODEL ADAPTER SAVE_DIR, or: RUN_FOLDER SAVE_DIR", exit_code=2
        )


def split(args: argparse.Namespace) -> None:
    """`SRC DST`."""
    from xtuner.cli.paths import check_model

    check_model(args.src)
    from xtuner.export import split as splitting

    splitting.split(Path(args.src), Path(args.dst), tell=print)
