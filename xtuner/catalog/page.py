"""One page of the recipe book: everything that one built-in config says, put together from its rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xtuner.catalog.exceptions import EXCEPTIONS
from xtuner.catalog.models import MODELS, Model
from xtuner.catalog.recipes import RECIPES

LORA: Mapping[str, Any] = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.1}


@dataclass(frozen=True)
class Page:
    """What a config says. The defaults are what most configs say."""

    name: str
    path: str
    data: tuple[str, ...]
    """Keys of `SOURCES`; several are concatenated."""
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
    max_length: int = 2048
    pack: bool = True
    varlen: bool = False
    parallel: int | None = None
    """`sequence_parallel_size`; None: the config does not speak of it."""
    batch_size: int = 1
    accumulate: int = 16
    """Before it is multiplied with `sequence_parallel_size`."""
    workers: int = 0
    epochs: int = 3
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0
    half: bool = True
    """Whether the optimiser wrapper asks for float16."""
    warmup: float | None = 0.03
    max_dataset_length: int | None = None
    shuffle_before_pack: bool = True
    save_steps: int = 500
    log_interval: int = 10
    log_window: bool = False
    num_questions_iters: int = 500
    system: str = ""
    """Name of a `SYSTEM_TEMPLATE`; empty: no system text."""
    questions: str | None = "chat"
    """Key of `QUESTIONS`; None: nothing is asked while training."""
    throughput: str | None = None
    """"before" or "after" the questions: where tokens per second are measured."""
    style: str = "usual"
    """"usual", "intern" (loader and schedule of the InternLM team), "speed" (benchmarks: no questions)."""


def split_name(name: str) -> tuple[Model, str]:
    """Return model and recipe of a name that is in the book."""
    for model in MODELS:
        recipe = name.removeprefix(f"{model.key}_")
        if recipe != name and recipe in model.recipes:
            return model, recipe
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
    return Page(name, **{"path": model.path, **said})
