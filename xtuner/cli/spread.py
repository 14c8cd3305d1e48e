"""How a run is spread over processes, as the command line and names of 0.1.x say it."""

import argparse
import json
from pathlib import Path

from xtuner.config.choice import Choice
from xtuner.config.spec import RunSpec
from xtuner.errors import UserError, did_you_mean

PREFIX = "deepspeed_"


def choose_strategy(spec: RunSpec, args: argparse.Namespace) -> RunSpec:
    """Follow `--strategy` and `--deepspeed`; a name such as deepspeed_zero2 becomes the config that it stands for.

    Raises:
        UserError: both flags, or a name or file that is not there.
    """
    if args.strategy and args.deepspeed:
        raise UserError("Both --strategy and --deepspeed.", "Give one of them.", exit_code=2)
    choice = spec.strategy
    if args.strategy:
        kept = {"sequence_parallel_size", "timeout"} & choice.options.keys()
        choice = Choice(name=args.strategy, options={key: choice.options[key] for key in kept})
    name = args.deepspeed
    if name is None and choice.name.startswith(PREFIX):
        name = choice.name
    if name is None and choice.name == "deepspeed" and isinstance(choice.options.get("config"), str):
        name = choice.options["config"]
    if name is not None:
        choice = Choice(name="deepspeed", options={**choice.options, "config": read_deepspeed(name)})
    return spec.model_copy(update={"strategy": choice})


def read_deepspeed(name: str) -> dict[str, object]:
    """Return a DeepSpeed config: of a JSON file, or a built-in one by its name.

    Raises:
        UserError: neither, or the file is not JSON.
    """
    from xtuner.catalog.deepspeed import ZERO, render_deepspeed

    path = Path(name).expanduser()
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif name in ZERO:
        text = render_deepspeed(name)
    else:
        hint = did_you_mean(name, ZERO) or f"Known: {', '.join(ZERO)}, or a JSON file."
        raise UserError(f"There is no DeepSpeed config {name}.", hint)
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a DeepSpeed config.", "It must be a JSON object.")
    return config
