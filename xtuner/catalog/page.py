"""One page of the recipe book: everything that one built-in config says, put together from its rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xtuner.catalog.exceptions import EXCEPTIONS
from xtuner.catalog.model_row import Model
from xtuner.catalog.models import MODELS
from xtuner.catalog.recipes import RECIPES

LORA: Mapping[str, Any] = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.1}


@dataclass(frozen=True)
class Page:
    """What every config says. The defaults are what most say; a text is Python, written as it is."""

    name: str
    key: str
    """The row of `MODELS`."""
    path: str
    data: tuple[str, ...]
    """Keys of a table of sources; several are concatenated."""
    template: str | None = "default"
    """None: plain texts, without a chat template."""
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the tokenizer."""
    padding_side: str = "right"
    bits: int | None = 4
    """4: QLoRA; 8: INT8 by `load_in_8bit`; None: the checkpoint's own weights."""
    quant_storage: bool = False
    lora: Mapping[str, Any] | None = field(default_factory=lambda: LORA)
    dtype: str | None = "float16"
    attention: str | None = None
    max_length: int | str = 2048
    varlen: bool | None = False
    """None: the config does not speak of `use_varlen_attn`."""
    parallel: int | None = None
    """`sequence_parallel_size`; None: the config does not speak of it."""
    sampler: str = "usual"
    """"usual", "intern" (of the InternLM team), "parallel" (always the one for shared sequences), "length"."""
    batch_size: int = 1
    accumulate: int = 16
    """Before it is multiplied with `sequence_parallel_size`."""
    workers: int = 0
    epochs: int = 3
    max_iters: int | None = None
    """Where training ends, if not after `epochs`."""
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0
    half: bool = True
    """Whether the optimiser wrapper asks for float16."""
    warmup: float = 0.03
    warmup_variable: str = "warmup_ratio"
    warmup_start: str | None = "1e-5"
    """None: the learning rate only falls."""
    linear: str = "LinearLR"
    """How the config names the schedule of the warm-up."""
    eta_min: str = "0.0"
    save_steps: int = 500
    save_total: int = 2
    save_optimizer: bool = True
    save_variable: bool = False
    """Whether `save_optimizer` is a variable of PART 1."""
    save_last: bool = True
    log_interval: int = 10
    log_variable: bool = False
    """Whether `log_interval` is a variable of PART 1."""
    log_window: bool = False
    log_by_epoch: bool | None = False
    mean_pattern: bool = False
    info: Mapping[str, str] | None = field(default_factory=dict)
    """Further arguments of the hook that shows the data; None: it is not shown."""
    num_questions_iters: int | None = 500
    """None: the config does not speak of `evaluation_freq`."""
    system: str | None = ""
    """Name of a `SYSTEM_TEMPLATE`; empty: no system text; None: the config does not speak of it."""
    questions: str | None = "chat"
    """Key of `QUESTIONS`; None: nothing is asked while training."""
    question_options: Mapping[str, str] = field(default_factory=dict)
    """Further arguments of the hook that asks."""
    throughput: str | None = None
    """"before" or "after" the questions: where tokens per second are measured."""
    further_hooks: tuple[str, ...] = ()
    hooks_from: str = "xtuner.engine.hooks"


@dataclass(frozen=True)
class TextPage(Page):
    """Supervised training on texts. `data` are keys of `SOURCES`."""

    llm: str = "AutoModelForCausalLM"
    llm_options: Mapping[str, str] = field(default_factory=dict)
    tokenizer_type: str = "AutoTokenizer"
    tokenizer_path: str | None = None
    """A tokenizer that is not the checkpoint's: tokens are added to the model for it."""
    max_positions: int | None = None
    pack: bool = True
    max_dataset_length: int | None = None
    shuffle_before_pack: bool = True
    bot_name: str = ""
    """What a model that learns from MOSS data calls itself."""
    mmlu: bool = False
    """Whether MMLU is measured while training."""


@dataclass(frozen=True)
class TrainerPage(TextPage):
    """Supervised training by the Trainer of transformers."""

    optimizer: str = "adamw_torch"


@dataclass(frozen=True)
class PreferencePage(Page):
    """Training on pairs of answers. `data` is a key of `PREFERENCE_SOURCES`."""

    objective: str = "DPO"
    """Key of `OBJECTIVES`."""
    reward_token: int = 92527
    """The token at which a reward model judges."""


@dataclass(frozen=True)
class VisionPage(Page):
    """Training a model that sees pictures. `data` are keys of `VISION_SOURCES`, which lie in `data_root`."""

    data_root: str = "./data/llava_data/"
    freeze_llm: bool = True


@dataclass(frozen=True)
class LlavaPage(VisionPage):
    """LLaVA: a language model, a vision encoder, and a projector between them. `lora` is that of the language model."""

    freeze_visual: bool = True
    visual_lora: bool = False
    pretrained: str | None = None
    """The run that trained the projector, and its last iteration; `{key}` stands for `key`."""
    square: bool = True
    """Whether pictures are padded to squares."""
    pin_memory: bool = True


@dataclass(frozen=True)
class InternvlPage(VisionPage):
    """InternVL: one checkpoint of all parts."""


KINDS: Mapping[str, type[Page]] = {
    "text": TextPage,
    "trainer": TrainerPage,
    "preference": PreferencePage,
    "llava": LlavaPage,
    "internvl": InternvlPage,
}


def split_name(name: str) -> tuple[Model, str]:
    """Return the row of a name that is in the book, and the key of its recipe."""
    for model in MODELS:
        end = name.removeprefix(f"{model.key}_")
        if end != name and end in model.recipes:
            return model, model.recipes[end]
    raise AssertionError(name)


def build_page(name: str) -> Page:
    """Put the rows of a name together: the recipe, then the model, then what is different for this one name."""
    model, recipe = split_name(name)
    said: dict[str, Any] = {"template": model.template}
    if model.parallel:
        said["parallel"] = 1
    said |= RECIPES[recipe]
    # a recipe that trains all weights has no LoRA, whatever the model's LoRA is
    said |= {key: value for key, value in model.settings.items() if key != "lora" or said.get("lora", value)}
    said |= EXCEPTIONS.get(name, {})
    return KINDS[said.pop("kind", "text")](name, model.key, **{"path": model.path, **said})
