"""The learning rate of a 0.1.x run: a warm-up and a fall where it is that, else the chain of schedules as written."""

from dataclasses import dataclass
from typing import Any

from xtuner.config.table import Table
from xtuner.errors import UserError
from xtuner.legacy.phrase import Phrase, as_phrase

NAMES = {"LinearLR": "linear", "CosineAnnealingLR": "cosine", "ConstantLR": "constant"}
THIRD = 1 / 3
"""What mmengine's linear and constant schedules begin with unless told otherwise."""
CLOSE = 1e-6
NEVER = 1e8
"""mmengine ends a schedule without an end at a thousand million."""


@dataclass(frozen=True)
class Stretch:
    """One schedule as it is written. `end` None: with the run; `start` and `stop` are factors."""

    phrase: Phrase
    name: str
    epochs: bool
    each_epoch: bool
    begin: float
    end: float | None
    start: float
    stop: float
    floor: float
    period: float | None

    def is_warmup(self) -> bool:
        """Whether it rises."""
        return self.name == "linear" and self.start <= self.stop

    def is_level(self) -> bool:
        """Whether it changes nothing."""
        return self.name != "cosine" and self.start == self.stop == 1


def read_schedule(root: Phrase, loop: Table) -> Table:
    """Translate `param_scheduler` to the table of a `ScheduleSpec`.

    The usual, a linear warm-up and a fall to the end of the run, becomes a share of the run (or iterations) and a name;
    everything else a chain, which is worked out as mmengine did.

    Raises:
        UserError: another schedule, or an argument that is not known.
    """
    value = root.take("param_scheduler")
    spec = Table({"name": "constant", "warmup": 0.0}, file=root.table.file, line=root.line("param_scheduler"))
    if value is None:
        return spec
    listed = value if isinstance(value, list | tuple) else [value]
    where = root.where("param_scheduler")
    rate = peak(root)
    stretches = [read_stretch(as_phrase(one, tuple(NAMES), "param_scheduler", where), rate) for one in listed]
    usual = usual_course(stretches, loop, rate)
    if usual is not None:
        spec.join(usual)
        return spec
    chain = [to_step(stretch) for stretch in stretches]
    return Table({"chain": chain}, file=spec.file, line=spec.line, lines={"chain": spec.line})


def peak(root: Phrase) -> float:
    """Return the learning rate of the optimiser.

    Raises:
        UserError: it is not a number.
    """
    wrapper: Any = root.take("optim_wrapper")
    return Phrase(wrapper["optimizer"], "optimizer", "optim_wrapper.optimizer").number("lr", 1e-4)


def read_stretch(phrase: Phrase, rate: float) -> Stretch:
    """Take the arguments of one schedule; `rate` is the learning rate of the optimiser.

    Raises:
        UserError: an argument that is not known, not a number, or a factor with which no rate can go on.
    """
    phrase.role = "param_scheduler"
    name = NAMES[phrase.word]
    epochs = bool(phrase.take("by_epoch", True))
    by_iteration = bool(phrase.take("convert_to_iter_based", False)) or not epochs
    end = phrase.number("end", NEVER)
    start, stop, floor, period = 1.0, 1.0, 0.0, None
    if name == "linear":
        start, stop = phrase.number("start_factor", THIRD), phrase.number("end_factor", 1.0)
    elif name == "constant":
        start = phrase.number("factor", THIRD)
        stop = start
    else:
        floor, period = phrase.number("eta_min", 0.0), phrase.number("T_max", 0) or None
        if phrase.take("eta_min_ratio") is not None:
            floor = rate * phrase.number("eta_min_ratio", 0.0)
    if start <= 0:
        argument = "factor" if name == "constant" else "start_factor"
        raise UserError(f"{phrase.where(argument)}: {argument} must be above 0.", f"Write {argument}=1e-5.")
    if stop < 0:
        raise UserError(f"{phrase.where('end_factor')}: end_factor must not be below 0.", "Write end_factor=0.")
    begin = phrase.number("begin", 0)
    phrase.take("verbose")
    phrase.done()
    until = None if end >= NEVER else end
    return Stretch(phrase, name, epochs, not by_iteration, begin, until, start, stop, floor, period)


def usual_course(stretches: list[Stretch], loop: Table, rate: float) -> Table | None:
    """Return the settings of a `ScheduleSpec` without a chain that say the same, or None: there are none."""
    if any(stretch.each_epoch for stretch in stretches):
        return None
    spec = Table()
    rest = list(stretches)
    warm = rest.pop(0) if rest and rest[0].is_warmup() and not rest[0].is_level() else None
    rest = [stretch for stretch in rest if not stretch.is_level()]
    position = 0.0
    if warm is not None:
        if warm.begin or warm.stop != 1 or warm.end is None or not add_warmup(warm, loop, spec):
            return None
        position = warm.end
    if not rest:
        return spec
    (fall, *others) = rest
    if others or (warm is not None and warm.epochs != fall.epochs):
        return None
    length = length_of(fall, loop)
    if abs(fall.begin - position) > CLOSE * max(1.0, position) or not ends_with_run(fall, length):
        return None
    if fall.name == "constant" or (fall.name == "linear" and fall.start != 1):
        return None
    line = fall.phrase.line("type")
    spec.put("name", fall.name, line)
    spec.put("min_lr", fall.floor if fall.name == "cosine" else rate * fall.stop, line)
    return spec


def length_of(stretch: Stretch, loop: Table) -> float | None:
    """Return the length of the run in the unit of a schedule, None where only the data can tell."""
    if stretch.epochs:
        return float(loop["epochs"]) if "max_iters" not in loop else None
    return float(loop["max_iters"]) if "max_iters" in loop else None


def ends_with_run(stretch: Stretch, length: float | None) -> bool:
    """Whether a fall takes from its beginning to the end of the run."""
    close = CLOSE * max(1.0, length or 1.0)
    if stretch.end is not None and (length is None or abs(stretch.end - length) > close):
        return False
    if stretch.period is None:
        return True
    return length is not None and abs(stretch.begin + stretch.period - length) <= close


def add_warmup(warm: Stretch, loop: Table, spec: Table) -> bool:
    """Add a warm-up: as a share of a run of so many epochs, or in iterations; False: neither says the same."""
    assert warm.end is not None
    length = length_of(warm, loop)
    if warm.epochs:
        if length is None or warm.end >= length:
            return False
        spec.put("warmup", round(warm.end / length, 12), warm.phrase.line("end"))
    elif warm.end >= 1:
        spec.put("warmup_iters", int(warm.end), warm.phrase.line("end"))
    if spec.get("warmup") or "warmup_iters" in spec:
        spec.put("warmup_start", warm.start, warm.phrase.line("start_factor"))
    return True


def to_step(stretch: Stretch) -> Table:
    """Return the table of a `ScheduleStep`."""
    phrase = stretch.phrase
    step = Table(file=phrase.table.file, line=phrase.table.line)
    step.put("name", stretch.name, phrase.line("type"))
    step.put("begin", stretch.begin, phrase.line("begin"))
    if stretch.end is not None:
        step.put("end", stretch.end, phrase.line("end"))
    step.put("unit", "epochs" if stretch.epochs else "iterations", phrase.line("by_epoch"))
    step.put("each_epoch", stretch.each_epoch, phrase.line("convert_to_iter_based"))
    if stretch.name != "cosine":
        step.put("start_factor", stretch.start, phrase.line("start_factor"))
    if stretch.name == "linear":
        step.put("end_factor", stretch.stop, phrase.line("end_factor"))
    if stretch.name == "cosine":
        step.put("min_lr", stretch.floor, phrase.line("eta_min"))
        step.put("period", stretch.period, phrase.line("T_max"))
    return step
