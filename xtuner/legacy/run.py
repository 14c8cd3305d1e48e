"""A whole 0.1.x config -> `RunSpec`."""

import difflib
from typing import Any

from xtuner.config.check import to_spec
from xtuner.config.reader import Config
from xtuner.config.spec import RunSpec
from xtuner.config.table import COMMAND_LINE, Table
from xtuner.errors import UserError, did_you_mean
from xtuner.legacy.data import read_data
from xtuner.legacy.hook import read_hooks
from xtuner.legacy.mmlu import read_mmlu
from xtuner.legacy.model import LOADERS, TEXT_MODELS, read_text_model
from xtuner.legacy.optim import read_loop, read_optim
from xtuner.legacy.phrase import Phrase, Tell, as_phrase
from xtuner.legacy.schedule import read_schedule
from xtuner.legacy.trainer import read_trainer
from xtuner.legacy.vision import VISION_MODELS, read_vision_model
from xtuner.legacy.vocabulary import VARIABLES, dotted, word_of
from xtuner.log import LOGGER

BACKENDS: dict[str, str | None] = {
    "LocalVisBackend": None,
    "TensorboardVisBackend": "tensorboard",
    "WandbVisBackend": "wandb",
}
"""Where 0.1.x wrote numbers -> the callback that writes there; None: what is always written."""


def to_run_spec(config: Config, tell: Tell = LOGGER.warning) -> RunSpec:
    """Translate a config of XTuner 0.1.9 ... 0.1.23, as written or as dumped into a work dir.

    `tell` gets a sentence for everything that is written and has no effect here although it had one in 0.1.x.
    A part that no engine runs yet (pictures, preferences, several processes) translates all the same.

    Raises:
        UserError: a word, argument or variable that is not known (with the nearest) or cannot be followed; says file
            and line. Nothing is loaded or imported before.
    """
    assert config.kind == "python"
    root = Phrase(config.values, "the config", "")
    check_variables(config)
    for note in config.notes:
        tell(note)
    spec = Table(file=str(config.file), line=0)
    framework = root.take("framework")
    if framework == "huggingface":
        read_trainer(root, spec)
        return to_spec(spec)
    if framework is not None:
        raise UserError(f"{root.where('framework')}: framework is {framework!r}.", "Known: 'huggingface', or none.")
    read_five_parts(root, spec, tell)
    return to_spec(spec)


def read_five_parts(root: Phrase, spec: Table, tell: Tell) -> None:
    """Translate the usual five parts: settings, model, data, optimiser, runtime."""
    model, objective = read_model(root)
    loop = Table(file=spec.file, line=0)
    read_loop(root, loop)
    data, sampler_seed = read_data(root, model, objective, loop)
    spec.put("model", model, root.line("model"))
    spec.put("objective", objective, root.line("model"))
    spec.put("data", data, root.line("train_dataloader"))
    spec.put("optim", read_optim(root, loop), root.line("optim_wrapper"))
    spec.put("schedule", read_schedule(root, loop), root.line("param_scheduler"))
    callbacks: list[Any] = []
    checkpoint, probe = read_hooks(root, model, data, loop, callbacks, tell)
    spec.put("checkpoint", checkpoint, root.line("default_hooks"))
    if probe is not None:
        spec.put("probe", probe, root.line("custom_hooks"))
    test = read_mmlu(root)
    if test is not None:
        callbacks.append(test)
    callbacks += read_visualizer(root, tell)
    spec.put("callbacks", callbacks, root.line("custom_hooks"))
    spec.put("loop", loop, root.line("train_cfg"))
    strategy = read_strategy(root)
    if strategy is not None:
        spec.put("strategy", strategy, strategy.line)
    read_runtime(root, spec, sampler_seed)


def read_model(root: Phrase) -> tuple[Table, Table]:
    """Translate `model` to the tables of a `ModelSpec` and of the objective."""
    given = root.need("model")
    if isinstance(given, Table) and word_of(given.get("type")) in LOADERS:
        raise UserError(
            f"{given.where('type')}: the model is not wrapped.",
            "Write model = dict(type=SupervisedFinetune, llm=dict(...)).",
        )
    model = root.phrase("model", *TEXT_MODELS, *VISION_MODELS)
    assert model is not None
    if model.word in TEXT_MODELS:
        return read_text_model(model)
    objective = Table({"name": "sft", "options": Table()}, file=model.table.file, line=model.table.line)
    return read_vision_model(model), objective


def read_strategy(root: Phrase) -> Table | None:
    """Translate how the run is spread over cards: `sequence_parallel_size`, and what --deepspeed left in a dump."""
    size = root.take("sequence_parallel_size", 1)
    options = Table(file=root.table.file, line=root.line("sequence_parallel_size"))
    deepspeed = root.phrase("strategy", "DeepSpeedStrategy")
    if size != 1:
        options.put("sequence_parallel_size", size, root.line("sequence_parallel_size"))
    if deepspeed is not None:
        options.put("config", deepspeed.need("config"), deepspeed.line("config"))
        for taken in ("gradient_accumulation_steps", "gradient_clipping"):
            deepspeed.take(taken)  # beside the optimiser
        deepspeed.done()
    if not options:
        return None
    name = "ddp" if deepspeed is None else "deepspeed"
    return Table({"name": name, "options": options}, file=options.file, line=options.line)


def check_variables(config: Config) -> None:
    """Refuse top-level names that mean nothing although they look as if they should.

    Variables are free in a config, so only these are refused: one that exists on the command line alone, and one that
    nothing uses and that is a near miss of a part.
    """
    values = config.values
    for name, value in values.items():
        if name in VARIABLES or name in config.read:
            continue
        if name in config.added:
            hint = did_you_mean(name, [*values.keys() - {name}, *VARIABLES]) or "Name a variable of the config."
            raise UserError(f"There is no {name} in {config.file} that could be overridden.", hint)
        near = difflib.get_close_matches(name, VARIABLES, 1, 0.85) if isinstance(value, dict | list) else []
        if near and near[0] not in values:
            raise UserError(f"{values.where(name)}: nothing uses {name}.", f"Did you mean {near[0]}?")


def read_visualizer(root: Phrase, tell: Tell) -> list[Any]:
    """Translate `visualizer`: the callbacks that write numbers elsewhere than into the work dir."""
    callbacks: list[Any] = []
    visualizer = root.phrase("visualizer", "Visualizer")
    if visualizer is None:
        return callbacks
    for number, one in enumerate(visualizer.take("vis_backends") or []):
        where = visualizer.where("vis_backends")
        name = (dotted(one.get("type")) or "") if isinstance(one, Table) else ""
        if name.endswith("VisBackend") and word_of(name) is None:
            kind = name.rsplit(".", 1)[-1]
            tell(f"{one.where('type')}: nothing is sent to {kind}; the numbers stand in the work dir.")
            continue
        backend = as_phrase(one, tuple(BACKENDS), f"visualizer.vis_backends.{number}", where)
        options = Table(file=backend.table.file, line=backend.table.line)
        if backend.word == "WandbVisBackend":
            options.join(backend.take("init_kwargs") or {})
        backend.done()
        if callback := BACKENDS[backend.word]:
            callbacks.append(Table({"name": callback, "options": options}, file=options.file, line=options.line))
    visualizer.done()
    return callbacks


def read_runtime(root: Phrase, spec: Table, sampler_seed: int | None) -> None:
    """Translate what is left of PART 5: load_from, resume, randomness, work_dir.

    Raises:
        UserError: two files of weights to begin with.
    """
    resume, source = root.take("resume", False), root.take("load_from")
    if isinstance(resume, str):
        resume, source = True, resume
    if resume:
        spec.put("resume", source or "auto", root.line("resume"))
    elif source is not None:
        if "weights" in spec["model"]:
            raise UserError(
                f"{root.where('load_from')}: both load_from and pretrained_pth name weights to begin with.",
                "Set one of them to None.",
            )
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
