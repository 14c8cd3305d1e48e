"""Says what a run will take before it begins: memory by class, speed, time, disk. Loads no weights."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from xtuner.cli.launch import read_layout
from xtuner.cli.train import check_one, load_bare, sort_words
from xtuner.errors import UserError

if TYPE_CHECKING:
    from xtuner.cli.load import LoadedRun
    from xtuner.engine.plan.card import Card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="a config, and settings of the run")
    parser.add_argument(
        "--gpu", metavar="NAME", help="plan for this card (4090, A100, 8xH200) or size (8GB), not for this machine"
    )
    parser.add_argument(
        "--probe", action="store_true", help="also run one iteration of the largest size here, and compare"
    )
    parser.add_argument("--model", help="plan to train this model (a folder or a hub id) without a config")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="files or folders to train it on")
    parser.add_argument("--template", help="the chat template; found out from the model when it is left out")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="store the frozen weights in so many bits (QLoRA)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings of a 0.1.x config")
    parser.add_argument("--strategy", help="how the run is spread over cards: auto, ddp, fsdp, deepspeed_zero2, ...")
    parser.add_argument("--deepspeed", metavar="NAME", help="deepspeed_zero1, _zero2, _zero3, ..., or a JSON file")
    parser.set_defaults(resume=None)


def run(args: argparse.Namespace) -> int:
    """Print the plan; the exit code is 1 if the memory does not suffice."""
    from xtuner.cli.spread import choose_strategy
    from xtuner.engine.plan.check import check_plan
    from xtuner.engine.plan.plan import make_plan
    from xtuner.engine.plan.render import render_page
    from xtuner.engine.plan.shape import load_shape
    from xtuner.engine.plan.work import estimate_work

    if args.probe and args.gpu:
        raise UserError("--probe runs here, and --gpu plans for another card.", "Leave one of them out.", exit_code=2)
    join_unit(args)
    card = choose_card(args.gpu)
    if args.probe and card.count > 1:
        raise UserError(
            "--probe is one process.", "Leave it out, or do not set NPROC_PER_NODE and NNODES.", exit_code=2
        )
    loaded = load(args)
    spec = choose_strategy(loaded.spec, args)
    shape = load_shape(spec.model.path)
    check_plan(spec, shape, card)
    plan = make_plan(spec, shape, card, estimate_work(spec, card.count))
    print(render_page(plan, loaded.name), flush=True)
    if args.probe:
        from xtuner.engine.plan.probe import probe, render_probe

        print("\nprobe   one iteration of the largest size ...", flush=True)
        print(render_probe(plan, probe(plan)))
    return 0 if plan.fits else 1


def join_unit(args: argparse.Namespace) -> None:
    """Take `8 GB` for one word, as people write it."""
    units = [word for word in args.words if word.lower() in ("gb", "gib")]
    if args.gpu and args.gpu.replace(".", "").isdecimal() and len(units) == 1:
        args.words.remove(units[0])
        args.gpu += units[0]


def load(args: argparse.Namespace) -> "LoadedRun":
    """Load the spec that is named, as `xtuner train` does.

    Raises:
        UserError: nothing or several named (exit code 2), or what cannot be found or understood.
    """
    from xtuner.cli.load import load_run

    configs, settings = sort_words(args)
    if args.model or args.data:
        if configs or args.cfg_options:
            raise UserError(
                f"Both a config ({configs[0]}) and --model/--data." if configs else "--cfg-options needs a config.",
                "With --model and --data write settings as key=value.",
                exit_code=2,
            )
        return load_bare(args, settings)
    if not configs:
        raise UserError("Nothing to plan.", "Type: xtuner plan CONFIG, or: xtuner plan --model FOLDER --data FILE", 2)
    check_one(configs, args)
    return load_run(configs[0], overrides=settings, cfg_options=args.cfg_options)


def choose_card(gpu: str | None) -> "Card":
    """Return the card that is named, or what is here; as many as are named, or as the variables of `train` say.

    Raises:
        UserError: there is none of that name, or both say how many, and not the same (exit code 2).
    """
    layout = read_layout()
    count = layout.processes * layout.machines
    if gpu is not None:
        from xtuner.engine.plan.card import find_cards

        card = find_cards(gpu)
        if count > 1 and card.count not in (1, count):
            raise UserError(
                f"--gpu says {card.count} cards, NPROC_PER_NODE and NNODES say {count}.", "Say it once.", exit_code=2
            )
        return replace(card, count=max(count, card.count))
    from xtuner.engine.plan.present import read_card, share_host
    from xtuner.engine.precision import find_device

    return share_host(replace(read_card(find_device()), count=count), layout.processes)
