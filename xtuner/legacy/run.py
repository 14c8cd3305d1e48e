"""A whole 0.1.x config -> `RunSpec`."""

import difflib
from typing import Any

from xtuner.config.check import to_spec
from xtuner.config.reader import Config
from xtuner.config.spec import RunSpec
from xtuner.config.table import COMMAND_LINE, Table
from xtuner.errors import UserError, did_you_mean
from xtuner.legacy.data import read_data
from xtuner.legacy.hook import read_custom_hooks, read_default_hooks
from xtuner.legacy.model import read_model
from xtuner.legacy.optim import read_loop, read_optim, read_schedule
from xtuner.legacy.phrase import Phrase, as_phrase
from xtuner.legacy.vocabulary import LATER_VARIABLES, VARIABLES

BACKENDS = ("LocalVisBackend",)


def to_run_spec(config: Config) -> RunSpec:
    """Translate a config of XTuner 0.1.9 ... 0.1.23, as written or as dumped into a work dir.

    Raises:
        UserError: a word, argument or variable that is not known (with the nearest) or cannot be followed; says file
            and line. Nothing is loaded or imported before.
    """
    assert config.kind == "python"
    root = Phrase(config.values, "the config", "")
    check_variables(config)
    model = read_model(root)
    spec, loop = (Table(file=str(config.file), line=0) for _ in range(2))
    read_loop(root, loop)
    data, sampler_seed = read_data(root, model, loop)
    spec.put("model", model, root.line("model"))
    spec.put("data", data, root.line("train_dataloader"))
    spec.put("optim", read_optim(root, loop), root.line("optim_wrapper"))
    spec.put("schedule", read_schedule(root, loop), root.line("param_scheduler"))
    spec.put("checkpoint", read_default_hooks(root, loop), root.line("default_hooks"))
    callbacks: list[Any] = []
    probe = read_custom_hooks(root, data, callbacks)
    if probe is not None:
        spec.put("probe", probe, root.line("custom_hooks"))
    spec.put("callbacks", callbacks, root.line("custom_hooks"))
    spec.put("loop", loop, root.line("train_cfg"))
    read_runtime(root, spec, sampler_seed)
    return to_spec(spec)


def check_variables(config: Config) -> None:
    """Refuse top-level names that mean nothing although they look as if they should.

    Variables are free in a config, so only these are refused: one that exists on the command line alone, one that
    nothing uses and that is a near miss of a part, and parts that this version cannot run.
    """
    values = config.values
    for name, value in values.items():
        if name in LATER_VARIABLES and value is not None:
            what = LATER_VARIABLES[name]
            raise UserError(
                f"{values.where(name)}: {name} is for {what}, which this version cannot run yet.",
                f"Set {name} = None to train without.",
            )
        if name in VARIABLES or name in config.read:
            continue
        if name in config.added:
            hint = did_you_mean(name, [*values.keys() - {name}, *VARIABLES]) or "Name a variable of the config."
            raise UserError(f"There is no {name} in {config.file} that could be overridden.", hint)
        near = difflib.get_close_matches(name, VARIABLES, 1, 0.85) if isinstance(value, dict | list) else []
        if near and near[0] not in values:
            raise UserError(f"{values.where(name)}: nothing uses {name}.", f"Did you mean {near[0]}?")
    size = values.get("sequence_parallel_size", 1)
    if size != 1:
        raise UserError(
            f"{values.where('sequence_parallel_size')}: one sequence over {size} cards is not possible yet.",
            "Set sequence_parallel_size = 1.",
        )


def read_runtime(root: Phrase, spec: Table, sampler_seed: int | None) -> None:
    """Translate what is left of PART 5: visualizer, load_from, resume, randomness, work_dir."""
    visualizer = root.phrase("visualizer", "Visualizer")
    if visualizer is not None:
        for number, backend in enumerate(visualizer.take("vis_backends") or []):
            as_phrase(backend, BACKENDS, f"visualizer.vis_backends.{number}", visualizer.where("vis_backends"))
        visualizer.done()
    resume, source = root.take("resume", False), root.take("load_from")
    if isinstance(resume, str):
        resume, source = True, resume
    if resume:
        spec.put("resume", source or "auto", root.line("resume"))
    elif source is not None:
        spec["model"].put("weights", source, root.line("load_from"))
    randomness = root.part("randomness")
    seed = None
    if randomness is not None:
        seed = randomness.take("seed")
        randomness.done()
    if seed is None:
        seed = sampler_seed
    if seed is not None:
        spec.put("seed", seed, root.line("randomness") if randomness else COMMAND_LINE)
    root.move("work_dir", spec, "work_dir")
