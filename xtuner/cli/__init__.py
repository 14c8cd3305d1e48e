"""The command line: parses words, loads a spec, calls one function, returns its exit code.

Every command is a module with `add_arguments(parser)` and `run(args) -> int` that imports nothing heavy before `run`.
"""

from collections.abc import Mapping

COMMANDS: Mapping[str, tuple[str, str]] = {
    "quickstart": ("xtuner.cli.quickstart", "fine-tune the built-in model, offline, in less than a minute"),
    "list-cfg": ("xtuner.cli.list_cfg", "list the built-in configs"),
    "copy-cfg": ("xtuner.cli.copy_cfg", "copy a built-in config, to edit it"),
    "train": ("xtuner.cli.train", "train from a config, or from a model and a data file"),
    "plan": ("xtuner.cli.plan", "say what a run will take: memory, time, disk, before it begins"),
    "convert": ("xtuner.cli.convert", "pth_to_hf, merge, split: turn checkpoints into models that others load"),
    "chat": ("xtuner.cli.chat", "talk to a model, a merged folder or a run"),
    "data": ("xtuner.cli.data", "show, lint, convert, split, repeat: look at data and rework it"),
    "log-dataset": ("xtuner.cli.log_dataset", "print the first training sample of a config"),
    "check-custom-dataset": ("xtuner.cli.check_custom_dataset", "print a row of a config after every step"),
    "list-dataset-format": ("xtuner.cli.list_dataset_format", "list the row formats"),
    "preprocess": ("xtuner.cli.preprocess", "arxiv, refcoco: prepare public data"),
    "model": ("xtuner.cli.model", "show: say what a model is: family, size, template, LoRA targets"),
    "selftest": ("xtuner.cli.selftest", "measure on this machine that training keeps its laws"),
    "version": ("xtuner.cli.version", "say which version this is"),
    "help": ("xtuner.cli.help", "show this help"),
}
"""Command -> (module, what it does)."""

LATER: Mapping[str, str] = {
    "test": "testing on MMLU",
    "mmbench": "testing models that see pictures",
    "eval_refcoco": "testing models that see pictures",
}
"""Commands of 0.1.x that this version does not have yet -> what they are for."""

__all__ = ["COMMANDS", "LATER"]
