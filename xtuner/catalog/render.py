"""Writes the text of a built-in config: PART 1 ... PART 5, with the variables that people know how to edit."""

import re
from collections.abc import Sequence

from xtuner.catalog.page import Page, build_page
from xtuner.catalog.parts import data, model, optimiser, runtime
from xtuner.catalog.settings import settings
from xtuner.catalog.sources import SOURCES

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
    "transformers": ("AutoModelForCausalLM", "AutoTokenizer", "BitsAndBytesConfig"),
    "xtuner.dataset": ("ConcatDataset", "process_hf_dataset", "process_ms_dataset"),
    "xtuner.dataset.collate_fns": ("default_collate_fn",),
    "xtuner.dataset.map_fns": (
        *sorted({source.map_function for source in SOURCES.values() if source.map_function}),
        "template_map_fn_factory",
    ),
    "xtuner.dataset.intern_repo": (
        "build_packed_dataset",
        "load_intern_repo_tokenized_dataset",
        "load_intern_repo_untokenized_dataset",
    ),
    "xtuner.dataset.samplers": ("InternRepoSampler",),
    "{hooks}": ("DatasetInfoHook", "EvaluateChatHook", "ThroughputHook", "VarlenAttnArgsToMessageHubHook"),
    "xtuner.engine.runner": ("TrainLoop",),
    "xtuner.model": ("SupervisedFinetune",),
    "xtuner.parallel.sequence": ("SequenceParallelSampler",),
    "xtuner.utils": ("PROMPT_TEMPLATE", "SYSTEM_TEMPLATE"),
}

RULE = "#" * 71


def render(name: str) -> str:
    """Write the config called `name`, which must be in the book."""
    page = build_page(name)
    parts = [settings(page), model(page), data(page), optimiser(page), runtime(page)]
    titles = ("Settings", "Model & Tokenizer", "Dataset & Dataloader", "Scheduler & Optimizer", "Runtime")
    body = ""
    for number, (title, text) in enumerate(zip(titles, parts, strict=True), 1):
        body += f"{head(number, title)}\n{text}\n\n"
    return f'"""{describe(page)}"""\n\n{imports(page, body)}\n{body.rstrip()}\n'


def head(number: int, title: str) -> str:
    """Write the frame above a part."""
    return f"{RULE}\n#{f'PART {number}  {title}':^69}#\n{RULE}"


def describe(page: Page) -> str:
    """Say in a line what the config does."""
    how = {4: "QLoRA in 4 bits", 8: "LoRA on weights in 8 bits", None: "LoRA" if page.lora else "all weights trained"}
    return f"{page.path}: {how[page.bits]}. Edit PART 1, then: xtuner train {page.name}_copy.py"


def imports(page: Page, body: str) -> str:
    """Write the imports that the text needs."""
    used = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"#.*|'[^'\n]*'", "", body)))
    hooks = "xtuner.engine" if page.style == "intern" else "xtuner.engine.hooks"
    lines = ["import torch"] if "torch" in used else []
    for module, symbols in IMPORTS.items():
        wanted = [symbol for symbol in symbols if symbol in used]
        if not wanted:
            continue
        if module.startswith(("xtuner", "{")) and lines and not any("from xtuner" in line for line in lines):
            lines.append("")
        line = f"from {module.format(hooks=hooks)} import "
        joined = ", ".join(wanted)
        lines.append(line + (joined if len(line + joined) <= 88 else f"(\n    {joined_lines(wanted)},\n)"))
    return "\n".join(lines) + "\n"


def joined_lines(symbols: Sequence[str]) -> str:
    """Put a symbol on each line."""
    return ",\n    ".join(symbols)
