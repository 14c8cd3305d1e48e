"""Shows what can be typed."""

import argparse

from xtuner.cli import COMMANDS

EXAMPLES = """\
Try it, without a model or data of your own:
    xtuner quickstart

Train on your own data, without a config:
    xtuner train --model ./internlm2-chat-1_8b --data data.json

Or start from a built-in config and edit it:
    xtuner list-cfg -p internlm2
    xtuner copy-cfg internlm2_chat_1_8b_qlora_alpaca_e3 .
    xtuner train ./internlm2_chat_1_8b_qlora_alpaca_e3_copy.py

Talk to the result, and make one model of it:
    xtuner chat ./work_dirs/internlm2_chat_1_8b_qlora_alpaca_e3_copy
    xtuner convert merge ./work_dirs/internlm2_chat_1_8b_qlora_alpaca_e3_copy ./merged"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes none; further words are let through, as 0.1.x did."""
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)


def render_help() -> str:
    """List the commands, then examples."""
    width = max(map(len, COMMANDS)) + 2
    rows = "\n".join(f"    {name:{width}}{what}" for name, (_, what) in COMMANDS.items())
    return (
        f"Usage: xtuner COMMAND [ARGUMENTS]\n\n{rows}\n\n"
        f"    xtuner COMMAND --help shows the arguments of a command.\n\n{EXAMPLES}"
    )


def run(args: argparse.Namespace) -> int:
    """Print the help."""
    print(render_help())
    return 0
