"""The part of a `RunSpec` that says how the learning rate goes over the run."""

from typing import Literal, Self

from pydantic import Field, model_validator

from xtuner.config.part import Part


class ScheduleStep(Part):
    """One schedule of several that are chained as LinearLR and its like of 0.1.x are.

    It changes the learning rate that it finds from its beginning to its end, and leaves it as it is then. Where two
    overlap, both work on it at each iteration, in the order of the list.
    """

    name: Literal["linear", "cosine", "constant"]
    """linear: from `start_factor` to `end_factor` of the rate; cosine: down to `min_lr`; constant: `start_factor`."""
    begin: float = Field(default=0, ge=0)
    """Where it begins."""
    end: float | None = Field(default=None, gt=0)
    """Where it ends; None: with the run."""
    unit: Literal["iterations", "epochs"] = "iterations"
    """What `begin`, `end` and `period` count; fractions of an iteration are dropped."""
    each_epoch: bool = False
    """Move once an epoch, not at every iteration."""
    start_factor: float = Field(default=1.0, gt=0)
    """linear, constant: factor of the learning rate at the beginning."""
    end_factor: float = Field(default=1.0, ge=0)
    """linear: factor of the learning rate at the end."""
    min_lr: float = Field(default=0.0, ge=0)
    """cosine: the lowest learning rate."""
    period: float | None = Field(default=None, gt=0)
    """cosine: how long it takes to the lowest learning rate; None: from `begin` to `end`."""

    @model_validator(mode="after")
    def _of_other_kinds(self) -> Self:
        if self.name != "cosine":
            self._refuse_idle("unless name is cosine", "min_lr", "period")
        if self.name != "linear":
            self._refuse_idle("unless name is linear", "end_factor")
        if self.name == "cosine":
            self._refuse_idle("with cosine", "start_factor")
        if self.unit == "iterations":
            self._refuse_idle("with iterations", "each_epoch")
        return self


class ScheduleSpec(Part):
    """Learning rate over the run: a linear warm-up, then `name`; or a chain of schedules."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of all iterations."""
    warmup_iters: int | None = Field(default=None, gt=0)
    """Iterations of the warm-up; overrides `warmup`."""
    warmup_start: float = 1e-5
    """Factor of the learning rate at the first iteration."""
    min_lr: float = 0.0
    """The learning rate at the end."""
    chain: list[ScheduleStep] = Field(default_factory=list)
    """Schedules one upon the other, each with its own beginning and end, in place of all of the above."""

    @model_validator(mode="after")
    def _without_its_part(self) -> Self:
        if self.chain:
            self._refuse_idle("with a chain", "name", "warmup", "warmup_iters", "warmup_start", "min_lr")
            return self
        if self.name == "constant":
            self._refuse_idle("with constant", "min_lr")
        if not self.warmup and self.warmup_iters is None:
            self._refuse_idle("without a warm-up", "warmup_start")
        return self
