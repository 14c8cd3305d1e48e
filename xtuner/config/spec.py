"""What a run is: `RunSpec`, the one description that every way of asking for a run is turned into.

Torch-free. Every field has an effect or is refused: unknown keys are errors (`extra="forbid"`), and so is a value that
another setting makes idle, unless it is the default.
"""

from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from xtuner.config.choice import Choice
from xtuner.config.model_spec import LoraSpec, ModelSpec, QuantSpec, VisionSpec
from xtuner.config.part import CLASH, IDLE, Part
from xtuner.config.schedule_spec import ScheduleSpec, ScheduleStep

__all__ = [
    "CheckpointSpec",
    "DataSpec",
    "LoopSpec",
    "LoraSpec",
    "ModelSpec",
    "OptimSpec",
    "ProbeSpec",
    "QuantSpec",
    "RunSpec",
    "ScheduleSpec",
    "ScheduleStep",
    "SourceSpec",
    "TemplateSpec",
    "VisionSpec",
]

DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xlsx", ".parquet", ".txt")
"""How the name of a single data file ends."""


OF_FORMATS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("bot_name",): ("moss",),
    ("order",): ("internevo", "internevo_messages"),
    ("min_length",): ("internevo", "tokens"),
}
"""Settings of a source -> the formats in which they have an effect."""


class SourceSpec(Part):
    """Rows from somewhere: a file, a folder, a hub id."""

    path: str
    """A file or folder, a hub id, or a loader name (json, csv, parquet, text) with `files`."""
    files: list[str] | str | dict[str, list[str] | str] | None = None
    """Files for a loader name, or a dict of them per split."""
    hub: Literal["huggingface", "modelscope"] = "huggingface"
    """The hub that a `path` is a name on when it is neither a file nor a folder."""
    name: str | None = None
    """A configuration of a hub data set."""
    data_dir: str | None = None
    """A folder inside a hub data set, or with a loader name the folder whose files are read."""
    split: str | None = "train"
    """The split of a hub data set; None: all of them."""
    format: str | None = None
    """A row format of `dataset` or `file.py:function`; None: recognised from the columns.

    Formats that are more than a row's shape: `moss` (MOSS-003 dialogues with tools), `tokens` (rows that hold
    `input_ids` and maybe `labels`), `internevo` (a folder of `.bin` files with tokens), `internevo_messages` (a folder
    of `.json` files, each line a list of messages).
    """
    rename: dict[str, str] = Field(default_factory=dict)
    """Column -> the name that its format expects."""
    limit: int | None = Field(default=None, gt=0)
    """At most this many rows, drawn at random with the run's seed."""
    system: str | None = None
    """A system text for conversations that have none."""
    bot_name: str | None = None
    """moss: what the assistant is called where the data says MOSS."""
    order: str | None = None
    """internevo, internevo_messages: a text file that names the files of the folder, one a line, as they are read."""
    min_length: int = Field(default=0, ge=0)
    """internevo, tokens: rows of fewer tokens are left out."""
    image_folder: str | None = None
    """The folder that the picture paths in the rows start from."""
    repeat: float = Field(default=1, gt=0)
    """Times that the rows are seen in an epoch; less than 1: a share of them, drawn with the run's seed."""

    @model_validator(mode="after")
    def _of_other_formats(self) -> Self:
        for names, formats in OF_FORMATS.items():
            if self.format not in formats:
                self._refuse_idle(f"unless format is {' or '.join(formats)}", *names)
        return self

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_file(self) -> Self:
        if PurePath(self.path).suffix.lower() in DATA_SUFFIXES:
            # split=None, all rows, is what a single file gives anyway
            idle = ("files", "name", "hub", "data_dir", *(() if self.split is None else ("split",)))
            self._refuse_idle("beside the path of a single file", *idle)
        return self


class TemplateSpec(Part):
    """A chat template that is written out instead of named; the slots are those of 0.1.x prompt templates."""

    instruction: str
    """Stands before an answer; holds `{input}`, maybe `{round}` (1, 2, ...)."""
    system: str | None = None
    """Stands before the instruction when there is a system text; holds `{system}`."""
    suffix: str = ""
    """Follows the answer and is learned."""
    suffix_as_eos: bool = False
    """The suffix stands for the tokenizer's EOS."""
    sep: str = ""
    """Stands between two turns, not learned."""
    stop_words: list[str] = Field(default_factory=list)
    """Texts that end an answer."""

    def fields(self) -> dict[str, Any]:
        """Return what a `ChatTemplate` is made of."""
        return {"name": "written out", **self.model_dump()}


class DataSpec(Part):
    """Rows in, batches out."""

    train: list[SourceSpec] = Field(min_length=1)
    """What is learned from: one source or several. A source can be just its path."""
    validation: list[SourceSpec] | float | None = None
    """Sources, or a share of the training rows (0 < share < 1) set apart by the run's seed."""
    template: str | TemplateSpec | None = None
    """A chat template of `conversation`, one written out, or None: plain text, or the model's own."""
    max_length: int = Field(default=2048, gt=0)
    """Tokens; a longer sample is cut on the right, a pack is filled up to this."""
    pack: bool = True
    """Put several samples into one row of `max_length`, each seeing itself only; False: one sample a row."""
    pack_length: int | None = Field(default=None, gt=0)
    """Tokens of a pack, where that is more than `max_length`."""
    shuffle: bool = True
    """A new order in every epoch; False: as in the files."""
    cache: str | None = None
    """Folder of prepared data; None: the user's cache folder."""

    @model_validator(mode="after")
    def _without_packs(self) -> Self:
        if not self.pack:
            self._refuse_idle("without data.pack", "pack_length")
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = {
                k: [v] if k in ("train", "validation") and isinstance(v, str | dict) else v for k, v in value.items()
            }
        return value


Decay = Annotated[float, Field(ge=0, lt=1)]
"""How much of a moment stays at a step."""


class OptimSpec(Part):
    """The optimiser. `name` is a row of `engine.OPTIMISERS`."""

    name: str = "adamw"
    """adamw, adamw_bf16, adamw_8bit, paged_adamw, paged_adamw_8bit, sgd.

    Bytes of moments for a trained weight: adamw 8 (4 if it is bf16), adamw_bf16 4, the ones of 8 bits 2; paged ones
    move to host memory when the card is full. With adamw_bf16 weights can be bf16 too (`model.dtype`): updates that
    are too small for the format add up all the same, rounded by chance.
    """
    lr: float = Field(default=2e-4, gt=0)
    """The highest learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Keeps the division by the second moment finite."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of matrices; norms and biases do not decay."""
    max_norm: float | None = Field(default=1.0, gt=0)
    """Clip the gradient to this norm; None: no clipping."""
    in_backward: bool = False
    """Move each weight as soon as its gradient is known and forget the gradient, so that all gradients never exist
    together. One process, no accumulation, no clipping (`max_norm` None), no `loop.skip_spikes`."""

    @model_validator(mode="after")
    def _momentum_alone(self) -> Self:
        if self.name == "sgd":
            self._refuse_idle("with sgd", "eps")
            if self.betas[1] != type(self).model_fields["betas"].default[1]:
                self._refuse_idle("beyond its first number with sgd", "betas")
        return self


class LoopSpec(Part):
    """How long and in what steps. An iteration is one micro-batch per rank."""

    epochs: float = Field(default=1, gt=0)
    """Times that all rows are seen; may be a fraction."""
    max_iters: int | None = Field(default=None, gt=0)
    """Overrides `epochs`."""
    batch_size: int = Field(default=1, gt=0)
    """Samples (or packs) per micro-batch and rank."""
    accumulate: int = Field(default=1, gt=0)
    """Iterations per optimiser step."""
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the computation; auto: float32 on a CPU, else bfloat16, or float16 on older cards."""
    log_every: int = Field(default=10, gt=0)
    """Iterations between two lines of the log."""
    validate_every: int | None = Field(default=None, gt=0)
    """Iterations between validations; None: at each checkpoint. Needs `data.validation`."""
    skip_spikes: bool = False
    """Leave out optimiser steps whose loss or gradient is far beyond the last ones', or not finite."""


class CheckpointSpec(Part):
    """When state is saved and how much of it is kept."""

    every: int | None = Field(default=500, gt=0)
    """Iterations (epochs with `by_epoch`); None: only at the end."""
    keep: int | None = Field(default=2, gt=0)
    """None: all."""
    by_epoch: bool = False
    """Count `every` in epochs, and name the files epoch_N.pth."""
    optimizer: bool = True
    """Save what a resume needs, not weights alone."""
    last: bool = True
    """Save at the last iteration."""
    best: str | None = None
    """Keep the state with the best of this number beside the others: val_loss, another that is measured while training,
    or auto: the first one measured."""
    best_rule: Literal["less", "greater"] | None = None
    """Which is better; None: less of a loss, error or perplexity, more of anything else."""

    @model_validator(mode="after")
    def _without_best(self) -> Self:
        if self.best is None:
            self._refuse_idle("without checkpoint.best", "best_rule")
        return self


class ProbeSpec(Part):
    """Questions asked before, during and after training, so that a person sees the model change."""

    questions: list[str] = Field(default_factory=list)
    """Asked one by one, each as a new conversation."""
    system: str = ""
    """A system text before each question."""
    every: int | None = Field(default=None, gt=0)
    """Iterations; None: before, after, and at each checkpoint."""
    max_new_tokens: int = Field(default=600, gt=0)
    """Longest answer, in tokens."""
    temperature: float = Field(default=0.1, ge=0)
    """How freely answers are drawn; 0: always the likeliest token."""
    top_k: int = Field(default=40, ge=0)
    """Draw from so many of the likeliest tokens; 0: from all."""
    top_p: float = Field(default=0.75, gt=0, le=1)
    """Draw from the likeliest tokens that have this share of the probability together."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1: tokens that were there before become less likely."""
    template: str | TemplateSpec | None = None
    """None: the template of the data."""
    stop_words: list[str] = Field(default_factory=list)
    """Further texts that end an answer, beside those of the template."""
    images: list[str] = Field(default_factory=list)
    """Pictures (files or addresses) shown with the questions: one for all, or one for each."""


class RunSpec(Part):
    """Everything about one run; saved as `run.json` in the work dir."""

    model: ModelSpec
    """The checkpoint and the form it is trained in."""
    data: DataSpec
    """What is learned from."""
    objective: Choice = Field(default_factory=lambda: Choice(name="sft"))
    """What is minimised: sft."""
    optim: OptimSpec = Field(default_factory=OptimSpec)
    """The optimiser."""
    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec)
    """The learning rate over the run."""
    loop: LoopSpec = Field(default_factory=LoopSpec)
    """How long, and in what steps."""
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    """When state is saved."""
    probe: ProbeSpec | None = None
    """Questions asked during the run; None: none."""
    strategy: Choice = Field(default_factory=lambda: Choice(name="auto"))
    """How the run is spread over devices: single, ddp, fsdp, deepspeed; auto: single, or ddp for several processes."""
    callbacks: list[Choice] = Field(default_factory=list)
    """Further callbacks by name; progress, log, checkpoint, data and probe ones are always there."""
    work_dir: str | None = None
    """None: `./work_dirs/<name of the config>`."""
    resume: str | None = None
    """A checkpoint to go on from, or "auto": the last one in the work dir."""
    resume_changed_data: bool = False
    """Go on although the training data changed since the checkpoint; the rest of the run learns from the new data."""
    seed: int = Field(default=0, ge=0)
    """A run with the same seed repeats."""

    @model_validator(mode="after")
    def _steps_in_backward(self) -> Self:
        if not self.optim.in_backward:
            return self
        clashes = {
            "optim.max_norm=none": (self.optim.max_norm is not None, "the norm of all gradients is known to clip them"),
            "loop.accumulate=1": (self.loop.accumulate > 1, "the gradients of other iterations are added"),
            "loop.skip_spikes=false": (self.loop.skip_spikes, "anyone can say whether a step is a spike"),
        }
        for fix, (is_set, why) in clashes.items():
            if is_set:
                what = f"optim.in_backward moves weights before {why}"
                raise PydanticCustomError(CLASH, "{what}", {"what": what, "fix": f"Set {fix}, or leave it out."})
        return self

    @model_validator(mode="after")
    def _spread_weights(self) -> Self:
        name, what = self.strategy.name, ""
        if self.model.host_embedding and name in ("fsdp", "deepspeed"):
            what = f"strategy={name} spreads the embedding over the cards, so it cannot stay on the host"
            fix = "Leave model.host_embedding out, or set strategy=ddp."
        if self.model.recompute == "offload_groups" and name == "fsdp":
            what = "strategy=fsdp puts a layer together when it is called, and offload_groups calls several at once"
            fix = "Set model.recompute=offload_layers, or strategy=ddp."
        if what:
            raise PydanticCustomError(CLASH, "{what}", {"what": what, "fix": fix})
        return self

    @model_validator(mode="after")
    def _pictures_without_eyes(self) -> Self:
        shown = {
            "data.train.image_folder": any(source.image_folder for source in self.data.train),
            "probe.images": self.probe is not None and self.probe.images,
        }
        for name, is_set in shown.items():
            if is_set and self.model.vision is None:
                raise PydanticCustomError(
                    IDLE, "{name} has no effect {why}", {"name": name, "why": "without model.vision"}
                )
        return self
