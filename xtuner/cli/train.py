"""Trains: from a config (file, built-in name, run folder), or from a model and data alone."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtuner.cli.launch import is_first_here, is_worker, launch, read_layout, take_place
from xtuner.errors import UserError

if TYPE_CHECKING:
    from xtuner.cli.load import LoadedRun
    from xtuner.config.spec import RunSpec

PROBES = ["你好，请介绍一下你自己。", "Hello! Who are you, and what can you do?"]
"""Asked before and after, so that a person sees the model change."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="a config, and settings of the run")
    parser.add_argument("--model", help="train this model (a folder or a hub id) without a config")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="files or folders to train it on")
    parser.add_argument("--template", help="the chat template; found out from the model when it is left out")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="store the frozen weights in so many bits (QLoRA)")
    parser.add_argument("--work-dir", help="where everything of this run goes; ./work_dirs/NAME when left out")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="CHECKPOINT", help="go on from there, or from the last one"
    )
    parser.add_argument(
        "--skip-spikes", action="store_true", help="leave out steps whose loss or gradient is far beyond the last ones'"
    )
    parser.add_argument("--seed", type=int, help="a run with the same seed repeats; a resumed run keeps its own")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings of a 0.1.x config")
    parser.add_argument("--strategy", help="how the run is spread over cards: auto, ddp, fsdp, deepspeed_zero2, ...")
    parser.add_argument("--deepspeed", metavar="NAME", help="deepspeed_zero1, _zero2, _zero3, ..., or a JSON file")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # old launchers of torch add it
    launchers = ("none", "pytorch", "slurm", "mpi")
    parser.add_argument("--launcher", default="none", choices=launchers, help="who started the processes")


def run(args: argparse.Namespace) -> int:
    """Load the spec, then train it, in several processes where the environment says so."""
    try:
        return run_here(args)
    except Exception as error:
        if is_first_here() or os.environ.get("XTUNER_DEBUG") == "1":
            raise
        return error.exit_code if isinstance(error, UserError) else 1  # rank 0 has learned of it and says it


def run_here(args: argparse.Namespace) -> int:
    """Load the spec; then start the processes and wait for them, or be one of them."""
    take_place(args.launcher)
    layout = read_layout()
    from xtuner.cli.load import load_run  # pydantic takes its time; `--help` need not wait
    from xtuner.cli.paths import check_run
    from xtuner.cli.spread import choose_strategy
    from xtuner.config.later import check_runnable
    from xtuner.config.spec_override import override_spec

    configs, settings = sort_words(args)
    settings += ["loop.skip_spikes=true"] * args.skip_spikes
    loaded: LoadedRun
    if args.model or args.data:
        if configs or args.cfg_options:
            raise UserError(
                f"Both a config ({configs[0]}) and --model/--data." if configs else "--cfg-options needs a config.",
                "With --model and --data write settings as key=value.",
                exit_code=2,
            )
        loaded = load_bare(args, settings)
    else:
        check_one(configs, args)
        loaded = load_run(configs[0], overrides=settings, cfg_options=args.cfg_options)
    changes = {
        "work_dir": args.work_dir,
        "resume": args.resume,
    }
    spec = loaded.spec.model_copy(update={key: value for key, value in changes.items() if value is not None})
    if args.seed is not None:
        spec = override_spec(spec, [f"seed={args.seed}"])
    spec = choose_strategy(spec, args)
    check_runnable(spec)
    check_run(spec)
    if layout.several and not is_worker():
        return launch(layout, args.argv)
    if not configs and os.environ.get("RANK", "0") == "0":
        print("# This is the run; save it as a .yaml file to change it, or add settings as key=value.")
        print(loaded.dump_text)
    from xtuner.engine.train import train  # torch: wrong paths need not wait for it

    train(spec, name=loaded.name, dump=(loaded.dump_name, loaded.dump_text))
    return 0


def sort_words(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return configs and settings; takes back what `--data`, `--resume` and `--cfg-options` have swallowed of them."""
    files = [word for word in args.data or [] if "=" not in word or Path(word).exists()]
    words = args.words + [word for word in args.data or [] if word not in files]
    words += [word for word in args.cfg_options if "=" not in word]
    after = Path(args.resume or "")
    if after.suffix in (".py", ".yaml") or ("=" in after.name and not after.exists()):
        words.append(args.resume)
        args.resume = "auto"
    args.data = files or None
    args.cfg_options = [word for word in args.cfg_options if "=" in word]
    return [word for word in words if "=" not in word], [word for word in words if "=" in word]


def check_one(configs: Sequence[str], args: argparse.Namespace) -> None:
    """Make sure that one config is named.

    Raises:
        UserError: none or several, or options that go with --model alone (exit code 2).
    """
    if not configs:
        raise UserError(
            "Nothing to train.", "Type: xtuner train CONFIG, or: xtuner train --model FOLDER --data FILE", exit_code=2
        )
    if len(configs) > 1:
        raise UserError(f"More than one config: {', '.join(configs)}.", "Settings are written key=value.", exit_code=2)
    for option, setting in (("template", "data.template"), ("bits", "model.quant.bits")):
        if getattr(args, option) is not None:
            raise UserError(
                f"--{option} goes with --model and --data.",
                f"With a config write: {setting}={getattr(args, option)}",
                exit_code=2,
            )


def load_bare(args: argparse.Namespace, settings: Sequence[str]) -> "LoadedRun":
    """Choose a run for a model and data.

    Raises:
        UserError: one of the two is missing (exit code 2), or a setting is wrong.
    """
    from xtuner.cli.load import LoadedRun
    from xtuner.config.dump import dump_yaml
    from xtuner.config.spec_override import override_spec

    if not args.model or not args.data:
        missing = "--data FILE" if args.model else "--model FOLDER"
        raise UserError(
            f"{missing} is missing.", f"Type: xtuner {args.argv[0]} --model FOLDER --data FILE", exit_code=2
        )
    spec = override_spec(choose_spec(args.model, args.data, args.template, args.bits), settings)
    text = dump_yaml(spec)
    typed = Path(os.path.abspath(Path(args.model).expanduser()))  # a link keeps the name that was typed
    name = f"{typed.name}-{Path(args.data[0]).stem}"
    return LoadedRun(spec, name, f"{name}.yaml", text)


def choose_spec(model: str, data: Sequence[str], template: str | None, bits: int | None) -> "RunSpec":
    """Choose a run that suits most first attempts.

    LoRA of rank 64, alpha 16, learning rate 2e-4: what the QLoRA paper found good for all sizes, and the courses teach.
    Three epochs in steps of 4 packs: a first data set is small, and with larger steps it would be over after a few.
    No dropout: it hardly helps at this rank and costs speed.

    Raises:
        UserError: there is no template of that name.
    """
    from xtuner.config.check import to_spec
    from xtuner.conversation.builtin import find_template
    from xtuner.conversation.detect import detect_template

    folder = Path(model).expanduser()
    if template is not None:
        find_template(template)
    elif folder.is_dir():
        template = detect_template(folder)
    settings: dict[str, Any] = {
        "model": {"path": model, "lora": {}, **({"quant": {"bits": bits}} if bits else {})},
        "data": {"train": list(data), "template": template},
        "loop": {"epochs": 3, "accumulate": 4},
    }
    if template is not None:
        settings["probe"] = {"questions": PROBES, "max_new_tokens": 100}
    return to_spec(settings)
