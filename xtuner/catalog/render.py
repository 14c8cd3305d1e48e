"""Writes the text of a built-in config: PART 1 ... PART 5, with the variables that people know how to edit."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xtuner.catalog import preference, trainer, vision
from xtuner.catalog.data_part import data
from xtuner.catalog.deepspeed import ZERO, render_deepspeed
from xtuner.catalog.model_part import model
from xtuner.catalog.page import InternvlPage, LlavaPage, Page, PreferencePage, TextPage, TrainerPage, build_page
from xtuner.catalog.runtime_part import runtime
from xtuner.catalog.schedule_part import schedule
from xtuner.catalog.script import SCRIPTS
from xtuner.catalog.settings import settings
from xtuner.catalog.sources import SOURCES
from xtuner.errors import UserError

TITLES = ("Settings", "Model & Tokenizer", "Dataset & Dataloader", "Scheduler & Optimizer", "Runtime")
# what writes the five parts
WRITERS: Mapping[type[Page], tuple[Callable[[Any], str], ...]] = {
    TextPage: (settings, model, data, schedule, runtime),
    TrainerPage: (trainer.settings, trainer.model, trainer.data, trainer.schedule, trainer.runtime),
    PreferencePage: (preference.settings, preference.model, preference.data, schedule, runtime),
    LlavaPage: (vision.llava_settings, vision.llava_model, vision.llava_data, schedule, runtime),
    InternvlPage: (vision.internvl_settings, vision.internvl_model, vision.internvl_data, schedule, runtime),
}

MAP_FUNCTIONS = {source.map_function for source in SOURCES.values() if source.map_function}
# module -> what is imported from it, in the order of the text; only what a config uses is written
IMPORTS: dict[str, tuple[str, ...]] = {
    "datasets": ("load_dataset",),
    "mmengine.dataset": ("DefaultSampler",),
    "mmengine.hooks": ("CheckpointHook", "DistSamplerSeedHook", "IterTimerHook", "LoggerHook", "ParamSchedulerHook"),
    "mmengine.optim": ("AmpOptimWrapper", "CosineAnnealingLR", "LinearLR"),
    "modelscope.msdatasets": ("MsDataset",),
    "peft": ("LoraConfig",),
    "torch.optim": ("AdamW",),
    "torch.utils.data": ("BatchSampler",),
    "transformers": (
        "AutoModelForCausalLM",
        "AutoTokenizer",
        "BitsAndBytesConfig",
        "CLIPImageProcessor",
        "CLIPVisionModel",
        "LlamaTokenizer",
        "MistralForCausalLM",
        "Trainer",
        "TrainingArguments",
    ),
    "xtuner.dataset": (
        "ConcatDataset",
        "InternVL_V1_5_Dataset",
        "LLaVADataset",
        "MOSSSFTDataset",
        "process_hf_dataset",
        "process_ms_dataset",
    ),
    "xtuner.dataset.collate_fns": ("default_collate_fn", "mmlu_collate_fn"),
    "xtuner.dataset.collate_fns.preference_collate_fn": ("preference_collate_fn",),
    "xtuner.dataset.map_fns": (
        *sorted({*MAP_FUNCTIONS, "default_map_fn", "llava_map_fn"}),
        "template_map_fn_factory",
    ),
    "xtuner.dataset.intern_repo": (
        "build_packed_dataset",
        "load_intern_repo_tokenized_dataset",
        "load_intern_repo_untokenized_dataset",
    ),
    "xtuner.dataset.preference_dataset": (
        "build_preference_dataset",
        "load_jsonl_dataset",
        "orpo_dpo_mix_40k_map_fn",
    ),
    "xtuner.dataset.refcoco_json": ("InvRefCOCOJsonDataset", "RefCOCOJsonDataset"),
    "xtuner.dataset.samplers": ("InternRepoSampler", "LengthGroupedSampler"),
    "{hooks}": (
        "DatasetInfoHook",
        "EvaluateChatHook",
        "HFCheckpointHook",
        "ThroughputHook",
        "VarlenAttnArgsToMessageHubHook",
    ),
    "xtuner.engine.runner": ("TrainLoop",),
    "xtuner.evaluation": ("MMLUMetric",),
    "xtuner.model": ("InternVL_V1_5", "LLaVAModel", "SupervisedFinetune"),
    "xtuner.model.dpo": ("DPO",),
    "xtuner.model.orpo": ("ORPO",),
    "xtuner.model.reward": ("RewardModel",),
    "xtuner.model.transformers_models.deepseek_v2": ("DeepseekV2ForCausalLM",),
    "xtuner.parallel.sequence": ("SequenceParallelSampler",),
    "xtuner.utils": ("PROMPT_TEMPLATE", "SYSTEM_TEMPLATE"),
}

RULE = "#" * 71


def render_file(name: str) -> tuple[str, str]:
    """Write what is called `name`, which must be in the book; returns the text and the suffix of a file of it.

    Raises:
        UserError: it is a script of 0.1.x; says what takes its place.
    """
    return (render_deepspeed(name), ".json") if name in ZERO else (render(name), ".py")


def render(name: str) -> str:
    """Write the config of a run called `name`, which must be in the book.

    Raises:
        UserError: it is not the config of a run; says what it is.
    """
    if name in ZERO:
        raise UserError(
            f"{name} says how training is spread over cards, not what is trained.",
            "Training with DeepSpeed is not part of this version yet. Type: xtuner train CONFIG",
        )
    if name in SCRIPTS:
        raise UserError(f"{name} was a script that lay among the configs of 0.1.x.", SCRIPTS[name])
    page = build_page(name)
    body = ""
    for number, (title, write) in enumerate(zip(TITLES, WRITERS[type(page)], strict=True), 1):
        body += f"{head(number, title)}\n{write(page)}\n\n"
    return f'"""{describe(page)}"""\n\n{imports(page, body)}\n{body.rstrip()}\n'


def head(number: int, title: str) -> str:
    """Write the frame above a part."""
    return f"{RULE}\n#{f'PART {number}  {title}':^69}#\n{RULE}"


def describe(page: Page) -> str:
    """Say what the config does, and what to do with it."""
    how = {4: "QLoRA in 4 bits", 8: "LoRA on weights in 8 bits", None: "LoRA"}[page.bits]
    if page.lora is None:
        how = "all weights trained"
    if isinstance(page, LlavaPage):
        eyes = "frozen" if page.freeze_visual else "all weights trained"
        eyes = "LoRA" if page.visual_lora else eyes
        llm = how if page.lora or not page.freeze_llm else "frozen"
        how = f"LLaVA; projector: trained, language model: {llm}, vision encoder: {eyes}"
    elif isinstance(page, InternvlPage):
        how = f"InternVL; projector: trained, language model: {how}, vision encoder: frozen"
    elif isinstance(page, PreferencePage):
        how = f"{page.objective}, {how}"
    return f"{page.path}: {how}.\n\nEdit PART 1, then: xtuner train {page.name}_copy.py\n"


def imports(page: Page, body: str) -> str:
    """Write the imports that the text needs."""
    used = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"#.*|'[^'\n]*'", "", body)))
    lines = ["import torch"] if "torch" in used else []
    for module, symbols in IMPORTS.items():
        wanted = [symbol for symbol in symbols if symbol in used]
        if not wanted:
            continue
        if module.startswith(("xtuner", "{")) and lines and not any("from xtuner" in line for line in lines):
            lines.append("")
        line = f"from {module.format(hooks=page.hooks_from)} import "
        joined = ", ".join(wanted)
        lines.append(line + (joined if len(line + joined) <= 88 else f"(\n    {joined_lines(wanted)},\n)"))
    return "\n".join(lines) + "\n"


def joined_lines(symbols: Sequence[str]) -> str:
    """Put a symbol on each line."""
    return ",\n    ".join(symbols)
