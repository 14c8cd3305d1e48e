"""The part of a `RunSpec` that says which checkpoint is trained, and in what form."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticCustomError

from xtuner.config.part import Part


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
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    """Module name -> rank, where it differs from `r`."""
    alpha_pattern: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Module name -> alpha, where it differs from `alpha`."""


class QuantSpec(Part):
    """How frozen base weights are stored: NF4 (https://arxiv.org/abs/2305.14314) or INT8 by bitsandbytes, or FP8."""

    bits: Literal[4, 8] = 4
    """4 (NF4 or FP4) or 8 (INT8)."""
    type: Literal["nf4", "fp4", "fp8"] = "nf4"
    """The number format: nf4 or fp4 in 4 bits; in 8 bits INT8, or with fp8 floating point on Hopper and later cards."""
    double: bool = True
    """Quantise the scales of the 4-bit blocks too."""
    compute_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the products; auto: that of the run."""
    int8_threshold: float = 6.0
    """Columns with larger inputs than this are computed unquantised (8 bits only)."""
    head: bool = False
    """Store the output head in 4 bits too, where it is not trained and not the embedding (4 bits only)."""
    resident: bool = False
    """Also hold what products read: the adapted layers in the format of products, so that 4 bits are dequantised once
    (the speed of unquantised weights for the memory of both; their values stay those of 4 bits); with fp8 the
    transposes of the weights, for the backward pass. Not with INT8."""
    max_loss_change: float | None = Field(default=0.05, ge=0)
    """fp8: how much the loss of the first batch may change by the rounding; None: any change is only said."""

    @model_validator(mode="after")
    def _of_the_other_bits(self) -> Self:
        if self.bits == 8 and self.type == "fp8":
            self._refuse_idle("with fp8", "double", "compute_dtype", "int8_threshold", "head")
        elif self.bits == 8:
            self._refuse_idle("at 8 bits", "type", "double", "compute_dtype", "head", "resident", "max_loss_change")
        else:
            idle = ("int8_threshold", "max_loss_change", *(["type"] if self.type == "fp8" else []))
            self._refuse_idle("at 4 bits", *idle)
        return self


class VisionSpec(Part):
    """The eyes of a model: an image encoder, and a projector that turns its features into embeddings.

    The parts and their names are those of LLaVA (https://arxiv.org/abs/2304.08485).
    """

    encoder: str | None = None
    """A folder or hub id of an image encoder; None: the one inside the checkpoint."""
    processor: str | None = None
    """A folder or hub id of another image processor; None: the encoder's own."""
    select_layer: int = -2
    """Hidden states of this layer of the encoder are the features."""
    projector_depth: int = Field(default=2, gt=0)
    """Linear layers of the projector."""
    pad_to_square: bool = False
    """Pad pictures to squares instead of cropping them."""
    freeze: bool = False
    """Do not train the encoder's own weights."""
    quant: QuantSpec | None = None
    """Store the encoder's weights in 4 or 8 bits (needs `lora` or `freeze`)."""
    lora: LoraSpec | None = None
    """Train an adapter of the encoder."""


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
    recompute: Literal["auto", "none", "mlp", "layers", "offload", "offload_layers", "offload_groups"] | int = "auto"
    """Activations that are recomputed in the backward pass instead of kept (https://arxiv.org/abs/1604.06174).

    none; mlp: those of the MLPs, in tiles of tokens; offload: the same, and the rest waits in host memory; layers: all
    but the input of every layer; a number: of so many layers; offload_layers: of every layer, and the inputs wait in
    host memory; offload_groups: of every four layers together, whose input waits there, and MLPs in tiles (the least
    of all, for the longest rows); auto: the fastest that fits. true and false mean layers and none.
    """
    compile: Literal["auto"] | bool = "auto"
    """Fuse the operations of a decoder layer with torch.compile; auto: on a card, in runs that are long enough."""
    trust_remote_code: bool = False
    """Run program code that comes with the checkpoint; families known here never need it."""
    max_position_embeddings: int | None = Field(default=None, gt=0)
    """Stretch the rotary positions to this many tokens (https://arxiv.org/abs/2306.15595); None: as trained."""
    resize_vocab: bool = False
    """Grow the embeddings to the size of `tokenizer`; new rows start at the mean of the others."""
    host_embedding: bool = False
    """Keep the input embedding in host memory, from which only the rows of a batch travel to the card (needs `lora`;
    not where the output head is the same weight)."""
    freeze: bool = False
    """Do not train the language model's own weights: the parts of `vision` learn, and adapters."""
    vision: VisionSpec | None = None
    """An image encoder beside the language model; None: it reads text alone."""

    @field_validator("recompute", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        if value is None:  # a bare `none` on the command line
            return "none"
        return {True: "layers", False: "none"}[value] if isinstance(value, bool) else value

    @field_validator("recompute")
    @classmethod
    def _so_many(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise PydanticCustomError("number", "should be 1 or more where it is a number of layers")
        return value

    @model_validator(mode="after")
    def _without_eyes(self) -> Self:
        if self.vision is None:
            self._refuse_idle("without model.vision", "freeze")
        return self

    @model_validator(mode="after")
    def _all_trained(self) -> Self:
        if self.lora is None:
            self._refuse_idle("without model.lora: the embedding learns too", "host_embedding")
        return self
