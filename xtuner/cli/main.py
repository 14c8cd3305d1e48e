"""The entry point: finds the command, imports that one module, and turns errors into one sentence and an exit code."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from xtuner.cli import COMMANDS, LATER
from xtuner.errors import UserError, did_you_mean, is_out_of_memory
from xtuner.log import quiet_libraries, setup_screen

WITH_MODES = ("convert", "data", "preprocess")
"""Commands whose first word names a mode, in whatever case."""
ALIASES = {"-h": "help", "--help": "help", "-v": "version", "--version": "version"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure, 2 for words that cannot be understood.

    `XTUNER_DEBUG=1` lets every error through with its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # OpenMP threads that wait for one another sleep instead of spinning: on cores that something else uses too,
    # spinning made training on a CPU four times slower. Must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    quiet_libraries()
    setup_screen()
    debug = os.environ.get("XTUNER_DEBUG") == "1"
    try:
        return dispatch(words)
    except SystemExit as stop:  # argparse has said what it has to say
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `xtuner list-cfg | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        if debug:
            raise
        print(error.what, *([error.fix] if error.fix else []), sep="\n", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        print(explain(error), file=sys.stderr)
        return 1


def explain(error: Exception) -> str:
    """Say in a line or two what a failure is that nobody has foreseen."""
    if is_out_of_memory(error):
        return "The memory ran out.\nUse a smaller model, a smaller batch_size or max_length, or load it in 4 bits."
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first}\nXTUNER_DEBUG=1 shows where."


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, instead of a screen full of options with the reason below."""

    def error(self, message: str) -> NoReturn:
        """Refuse the words.

        Raises:
            UserError: always (exit code 2).
        """
        raise UserError(f"{message[:1].upper()}{message[1:].rstrip('.')}.", f"Type: {self.prog} --help", exit_code=2)


def dispatch(words: list[str]) -> int:
    """Run the command that the first word names, whatever its case.

    Raises:
        UserError: no such command (exit code 2).
    """
    command = words[0].lower() if words else "help"
    command = ALIASES.get(command, command)
    if command in LATER:
        raise UserError(f"xtuner {command} ({LATER[command]}) is not part of this version yet.", "Type: xtuner help", 2)
    if command not in COMMANDS:
        raise UserError(
            f"There is no command {words[0]}.", did_you_mean(command, COMMANDS) or "Type: xtuner help", exit_code=2
        )
    module = importlib.import_module(COMMANDS[command][0])
    parser = Parser(prog=f"xtuner {command}", description=module.__doc__, allow_abbrev=False)
    module.add_arguments(parser)
    rest = [word.lower() if place == 0 and command in WITH_MODES else word for place, word in enumerate(words[1:])]
    # key=value words may stand between options; argparse cannot mix those with sub-commands
    mixed = command in ("train", "plan", "log-dataset", "check-custom-dataset")
    args = parser.parse_intermixed_args(rest) if mixed else parser.parse_args(rest)
    args.argv = words
    code = module.run(args)
    assert isinstance(code, int)
    return code


if __name__ == "__main__":
    sys.exit(main())
