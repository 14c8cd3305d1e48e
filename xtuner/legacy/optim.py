"""Optimiser, precision, schedule and length of a 0.1.x run."""

from typing import Any

from xtuner.config.table import Table
from xtuner.errors import UserError
from xtuner.legacy.phrase import Phrase, as_phrase
from xtuner.legacy.vocabulary import OPTIMISERS, dotted

LOOPS = ("TrainLoop", "EpochBasedTrainLoop", "IterBasedTrainLoop")
SCHEDULES = {"LinearLR": "linear", "CosineAnnealingLR": "cosine", "ConstantLR": "constant"}
IN_ROW = "Write begin and end in epochs, one after another, up to max_epochs."
CLOSE = 1e-6
NEVER = 1e8
"""mmengine ends a schedule without an end at a thousand million."""


def read_optim(root: Phrase, loop: Table) -> Table:
    """Translate `optim_wrapper` to the table of an `OptimSpec`; adds accumulation and precision to `loop`.

    Raises:
        UserError: a word or an argument that is not known or cannot be followed.
    """
    root.need("optim_wrapper")
    wrapper = root.phrase("optim_wrapper", "AmpOptimWrapper", "OptimWrapper", "DeepSpeedOptimWrapper")
    assert wrapper is not None
    wrapper.role = "optim_wrapper"
    spec = Table(file=wrapper.table.file, line=wrapper.table.line)
    wrapper.need("optimizer")
    optimizer = wrapper.phrase("optimizer", *OPTIMISERS)
    assert optimizer is not None
    spec.put("name", OPTIMISERS[optimizer.word], optimizer.line("type"))
    optimizer.need("lr")
    for argument in ("lr", "betas", "eps"):
        optimizer.move(argument, spec, argument)
    if optimizer.word == "SGD":
        spec.put("betas", (optimizer.number("momentum", 0.0), 0.999), optimizer.line("momentum"))
    # AdamW of torch decays by 0.01 unless told otherwise
    optimizer.move("weight_decay", spec, "weight_decay", default=0.01 if optimizer.word == "AdamW" else None)
    optimizer.done()
    clip = wrapper.part("clip_grad")
    spec.put("max_norm", None, wrapper.line("clip_grad"))
    if clip is not None:
        clip.move("max_norm", spec, "max_norm")
        clip.done()
    wrapper.move("accumulative_counts", loop, "accumulate")
    dtype = wrapper.take("dtype")
    if wrapper.word == "DeepSpeedOptimWrapper":
        read_strategy_optim(root, spec, loop)
    elif wrapper.word == "OptimWrapper":
        loop.put("precision", "float32", wrapper.line("type"))
    elif dtype is not None and (dotted(dtype) or "").removeprefix("torch.") != "float16":
        loop.put("precision", (dotted(dtype) or str(dtype)).removeprefix("torch."), wrapper.line("dtype"))
    wrapper.done()
    return spec


def read_strategy_optim(root: Phrase, spec: Table, loop: Table) -> None:
    """Take what 0.1.x moved from the optimiser to `strategy` when it trained with --deepspeed."""
    strategy = root.phrase("strategy", "DeepSpeedStrategy")
    if strategy is None:
        return
    strategy.move("gradient_accumulation_steps", loop, "accumulate")
    strategy.move("gradient_clipping", spec, "max_norm")


def read_loop(root: Phrase, loop: Table) -> None:
    """Translate `train_cfg` into epochs or iterations."""
    root.need("train_cfg")
    cfg = root.part("train_cfg")
    assert cfg is not None
    if cfg.take("type") is not None:
        as_phrase(cfg.table, LOOPS, "train_cfg", cfg.where())
    cfg.move("max_epochs", loop, "epochs")
    if cfg.take("max_iters") is not None:
        cfg.move("max_iters", loop, "max_iters")
    if "epochs" not in loop and "max_iters" not in loop:
        raise UserError(f"{cfg.where()}: train_cfg does not say how long to train.", "Add max_epochs=3.")
    cfg.done()


def read_schedule(root: Phrase, loop: Table) -> Table:
    """Translate `param_scheduler`: an optional linear warm-up, then a cosine, a linear fall, or nothing more.

    0.1.x gives begin and end in epochs, a `RunSpec` the warm-up as a share of the run.

    Raises:
        UserError: another schedule, gaps, overlaps, or an end that is not that of the run.
    """
    value = root.take("param_scheduler")
    where = root.where("param_scheduler")
    spec = Table({"name": "constant", "warmup": 0.0}, file=root.table.file, line=root.line("param_scheduler"))
    if value is None:
        return spec
    listed = value if isinstance(value, list | tuple) else [value]
    phrases = [as_phrase(one, tuple(SCHEDULES), "param_scheduler", where) for one in listed]
    for phrase in phrases:
        phrase.role = "param_scheduler"
    by_epoch = read_unit(phrases)
    end = run_length(phrases, loop, by_epoch)
    close = CLOSE * max(1.0, end)
    position = 0.0
    for number, phrase in enumerate(phrases):
        begin, until = phrase.number("begin", 0), phrase.number("end", end)
        until = end if until > NEVER else until
        if abs(begin - position) > close:
            raise UserError(f"{phrase.where('begin')}: this schedule begins at {begin:g}, not at {position:g}.", IN_ROW)
        if phrase.word == "LinearLR" and is_warmup(phrase):
            if number:
                raise UserError(f"{phrase.where()}: a warm-up stands first.", "Put it in front.")
            read_warmup(phrase, spec, until, end if by_epoch else None)
        else:
            spec.put("name", SCHEDULES[phrase.word], phrase.line("type"))
            read_floor(phrase, root, spec)
            if abs(until - end) > close:
                unit = "epochs" if by_epoch else "iterations"
                raise UserError(
                    f"{phrase.where('end')}: the schedule ends after {until:g} {unit}, the run after {end:g}.",
                    "Leave end out, and the schedule ends with the run; in built-in configs max_epochs sets both.",
                )
        phrase.done()
        position = until
    return spec


def read_warmup(phrase: Phrase, spec: Table, until: float, end: float | None) -> None:
    """Translate a warm-up: as a share of a run of `end` epochs, or (None) in iterations."""
    factor = phrase.number("start_factor", 1 / 3)
    if end is None:
        if until >= 1:
            spec.put("warmup_iters", int(until), phrase.line("end"))
    else:
        spec.put("warmup", round(until / end, 12), phrase.line("end"))
    if spec["warmup"] or "warmup_iters" in spec:
        spec.put("warmup_start", factor, phrase.line("start_factor"))


def read_unit(phrases: list[Phrase]) -> bool:
    """Say whether the schedules count epochs, and not iterations.

    Raises:
        UserError: some do and some do not, or they are stepped once an epoch.
    """
    units = [bool(phrase.take("by_epoch", True)) for phrase in phrases]
    for phrase, by_epoch in zip(phrases, units, strict=True):
        if by_epoch != units[0]:
            raise UserError(f"{phrase.where('by_epoch')}: one schedule counts epochs, another iterations.", IN_ROW)
        if not phrase.take("convert_to_iter_based", False) and by_epoch:
            raise UserError(
                f"{phrase.where('convert_to_iter_based')}: the learning rate moves every iteration, not every epoch.",
                "Write by_epoch=True, convert_to_iter_based=True, begin and end in epochs.",
            )
    return units[0] if units else True


def run_length(phrases: list[Phrase], loop: Table, by_epoch: bool) -> float:
    """Return the length of the run in the unit of the schedules.

    Epochs cannot be turned into iterations before the data are known, and the other way round: then the last end that
    a schedule names is the length.
    """
    if by_epoch != ("max_iters" in loop):
        return float(loop["epochs" if by_epoch else "max_iters"])
    ends = [phrase.number("end", 0) for phrase in phrases if not (phrase.word == "LinearLR" and is_warmup(phrase))]
    longest = max((end for end in ends if end <= NEVER), default=0.0)
    if longest and not by_epoch:
        last = phrases[-1]
        raise UserError(
            f"{last.where('end')}: the schedule ends after {longest:g} iterations, and train_cfg counts epochs.",
            f"Leave end out, and the schedule ends with the run; or write train_cfg = dict(max_iters={longest:g}).",
        )
    return longest or 1.0


def is_warmup(phrase: Phrase) -> bool:
    """Whether a linear schedule rises; mmengine's defaults are 1/3 to 1."""
    return phrase.number("start_factor", 1 / 3) <= phrase.number("end_factor", 1.0)


def read_floor(phrase: Phrase, root: Phrase, spec: Table) -> None:
    """Translate where a schedule ends: `eta_min`, or `end_factor` times the learning rate."""
    if phrase.word == "CosineAnnealingLR":
        phrase.move("eta_min", spec, "min_lr")
    elif phrase.word == "LinearLR":
        if phrase.number("start_factor", 1 / 3) != 1:
            raise UserError(f"{phrase.where('start_factor')}: a falling schedule starts at 1.", "Write start_factor=1.")
        optimizer: Any = root.take("optim_wrapper")["optimizer"]
        spec.put("min_lr", optimizer["lr"] * phrase.number("end_factor", 1.0), phrase.line("end_factor"))
    elif phrase.number("factor", 1 / 3) != 1:
        raise UserError(f"{phrase.where('factor')}: a constant schedule keeps the learning rate.", "Write factor=1.")
