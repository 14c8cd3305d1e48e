"""What a run is: `RunSpec`, the one description that every way of asking for a run is turned into.

Torch-free. Every field has an effect or is refused: unknown keys are errors (`extra="forbid"`), and so is a value that
another setting makes idle, unless it is the default.
"""

from pathlib import PurePath
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from xtuner.config.choice import Choice

DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xlsx", ".parquet", ".txt")
"""How the name of a single data file ends."""
IDLE = "idle"
"""Type of the error of a setting without an effect; its context says which (`name`) and `why`."""


class Part(BaseModel):
    """A part of a `RunSpec`: knows its keys and refuses others."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), defer_build=True)

    def _refuse_idle(self, why: str, *names: str) -> None:
        """Refuse settings that differ from their defaults although they have no effect `why`."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise PydanticCustomError(IDLE, "{name} has no effect {why}", {"name": name, "why": why})


class LoraSpec(Part):
    """A LoRA adapter (https://arxiv.org/abs/2106.09685); the fields become a PEFT `LoraConfig`."""

    r: int = Field(default=64, gt=0)
    """Rank of the two matrices."""
    alpha: float = Field(default=16, gt=0)
    """The change is multiplied by alpha / r (alpha / sqrt(r) with `rslora`)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of inputs that the adapter does not see while training."""
    targets: list[str] | str | None = None
    """Names of linear layers, a regular expression, or None: every linear layer but the output head named lm_head."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Names of modules that are trained whole beside the adapter."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    rslora: bool = False
    """Scale by the square root of the rank (https://arxiv.org/abs/2312.03732)."""
    dora: bool = False
    """Train magnitude and direction apart (https://arxiv.org/abs/2402.09353)."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Module name -> rank, where it differs from `r`."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Module name -> alpha, where it differs from `alpha`."""


class QuantSpec(Part):
    """How frozen base weights are stored (bitsandbytes): NF4 (https://arxiv.org/abs/2305.14314) or INT8."""

    bits: Literal[4, 8] = 4
    """4 (NF4 or FP4) or 8 (INT8)."""
    type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit number format."""
    double: bool = True
    """Quantise the scales of the 4-bit blocks too."""
    compute_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the products; auto: that of the run."""
    int8_threshold: float = 6.0
    """Columns with larger inputs than this are computed unquantised (8 bits only)."""

    @model_validator(mode="after")
    def _of_the_other_bits(self) -> Self:
        idle = ("int8_threshold",) if self.bits == 4 else ("type", "double", "compute_dtype")
        self._refuse_idle(f"at {self.bits} bits", *idle)
        return self


class ModelSpec(Part):
    """Which checkpoint, and in what form it is trained."""

    path: str
    """A folder or a hub id."""
    tokenizer: str | None = None
    """A folder or hub id of another tokenizer; None: the model's own."""
    tokenizer_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the tokenizer class, for example `padding_side`."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format the weights are held in; auto: float32 on a CPU, else the precision of the run."""
    quant: QuantSpec | None = None
    """Store frozen weights in 4 or 8 bits (needs `lora`)."""
    lora: LoraSpec | None = None
    """Train an adapter; None: train all weights."""
    adapter: str | None = None
    """An adapter folder or .pth to start from (needs `lora`)."""
    weights: str | None = None
    """A .pth whose trained weights are loaded before training (0.1.x `load_from`)."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """auto: packed attention; the others are the library's own."""
    recompute: bool = True
    """Recompute activations in the backward pass instead of keeping them (https://arxiv.org/abs/1604.06174)."""
    trust_remote_code: bool = False
    """Run program code that comes with the checkpoint; families known here never need it."""


class SourceSpec(Part):
    """Rows from somewhere: a file, a folder, a hub id."""

    path: str
    """A file or folder, a hub id, or a loader name (json, csv, parquet, text) with `files`."""
    files: list[str] | str | dict[str, list[str] | str] | None = None
    """Files for a loader name, or a dict of them per split."""
    name: str | None = None
    """A configuration of a hub data set."""
    split: str | None = "train"
    """The split of a hub data set; None: all of them."""
    format: str | None = None
    """A row format of `dataset` or `file.py:function`; None: recognised from the columns."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Column -> the name that its format expects."""
    limit: int | None = Field(default=None, gt=0)
    """At most this many rows, drawn at random with the run's seed."""
    system: str | None = None
    """A system text for conversations that have none."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_file(self) -> Self:
        if PurePath(self.path).suffix.lower() in DATA_SUFFIXES:
            # split=None, all rows, is what a single file gives anyway
            idle = ("files", "name") if self.split is None else ("files", "name", "split")
            self._refuse_idle("beside the path of a single file", *idle)
        return self


class DataSpec(Part):
    """Rows in, batches out."""

    train: list[SourceSpec] = Field(min_length=1)
    """What is learned from: one source or several. A source can be just its path."""
    validation: list[SourceSpec] | float | None = None
    """Sources, or a share of the training rows (0 < share < 1) set apart by the run's seed."""
    template: str | None = None
    """A chat template of `conversation`, or None: plain text, or the model's own."""
    max_length: int = Field(default=2048, gt=0)
    """Tokens; a longer sample is cut on the right, a pack is filled up to this."""
    pack: bool = True
    """Put several samples into one row of `max_length`, each seeing itself only; False: one sample a row."""
    shuffle: bool = True
    """A new order in every epoch; False: as in the files."""
    cache: str | None = None
    """Folder of prepared data; None: the user's cache folder."""

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = {
                k: [v] if k in ("train", "validation") and isinstance(v, str | dict) else v for k, v in value.items()
            }
        return value


class OptimSpec(Part):
    """The optimiser. `name` is a row of `engine.OPTIMISERS`."""

    name: str = "adamw"
    """adamw, adamw_8bit, paged_adamw, paged_adamw_8bit, sgd."""
    lr: float = Field(default=2e-4, gt=0)
    """The highest learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: float = 1e-8
    """Keeps the division by the second moment finite."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of matrices; norms and biases do not decay."""
    max_norm: float | None = 1.0
    """Clip the gradient to this norm; None: no clipping."""

    @model_validator(mode="after")
    def _momentum_alone(self) -> Self:
        if self.name == "sgd":
            self._refuse_idle("with sgd", "eps")
            if self.betas[1] != type(self).model_fields["betas"].default[1]:
                self._refuse_idle("beyond its first number with sgd", "betas")
        return self


class ScheduleSpec(Part):
    """Learning rate over the run: a linear warm-up, then `name`."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of all iterations."""
    warmup_start: float = 1e-5
    """Factor of the learning rate at the first iteration."""
    min_lr: float = 0.0
    """The learning rate at the end."""

    @model_validator(mode="after")
    def _without_its_part(self) -> Self:
        if self.name == "constant":
            self._refuse_idle("with constant", "min_lr")
        if not self.warmup:
            self._refuse_idle("without a warm-up", "warmup_start")
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
    template: str | None = None
    """None: the template of the data."""
    stop_words: list[str] = Field(default_factory=list)
    """Further texts that end an answer, beside those of the template."""


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
    strategy: Choice = Field(default_factory=lambda: Choice(name="single"))
    """How the run is spread over devices: single."""
    callbacks: list[Choice] = Field(default_factory=list)
    """Further callbacks by name; progress, log, checkpoint, data and probe ones are always there."""
    work_dir: str | None = None
    """None: `./work_dirs/<name of the config>`."""
    resume: str | None = None
    """A checkpoint to go on from, or "auto": the last one in the work dir."""
    seed: int = 0
    """A run with the same seed repeats."""
