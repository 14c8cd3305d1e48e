"""Writes PART 1 of a config: the variables that people change."""

from xtuner.catalog.page import Page
from xtuner.catalog.questions import AGENT, QUESTIONS
from xtuner.catalog.sources import SOURCES, Source
from xtuner.catalog.text import number, texts


def settings(page: Page) -> str:
    """Write PART 1: everything that people change."""
    rows = [SOURCES[key] for key in page.data]
    alone = len(rows) == 1
    lines = ["# Model", f"pretrained_model_name_or_path = {page.path!r}"]
    lines += [f"use_varlen_attn = {page.varlen}", "", "# Data"]
    for row in rows:
        lines.append(f"{path_variable(row, alone)} = {list(row.path) if isinstance(row.path, tuple) else row.path!r}")
        lines += [f"{name} = {value}" for name, value in row.settings]
    if page.template is not None:
        lines.append(f"prompt_template = PROMPT_TEMPLATE.{page.template}")
    if page.max_dataset_length is not None:
        lines.append(f"max_dataset_length = {page.max_dataset_length}")
    lines += [f"max_length = {page.max_length}  # tokens", f"pack_to_max_length = {page.pack}", ""]
    if page.parallel is not None:
        lines += ["# Cards that share one sequence", f"sequence_parallel_size = {page.parallel}", ""]
    lines += ["# Steps", f"batch_size = {page.batch_size}  # per card"]
    lines.append(f"accumulative_counts = {page.accumulate}  # batches per optimizer step")
    if page.parallel is not None:
        lines.append("accumulative_counts *= sequence_parallel_size")
    lines += [
        f"dataloader_num_workers = {page.workers}",
        f"max_epochs = {page.epochs}",
        "optim_type = AdamW",
        f"lr = {number(page.lr)}",
        f"betas = {page.betas}",
        f"weight_decay = {page.weight_decay}",
        "max_norm = 1  # longest gradient",
        f"warmup_ratio = {page.warmup}" if page.warmup is not None else "warm_up_ratio = 0.025",
        "",
        "# Checkpoints",
        f"save_steps = {page.save_steps}",
        "save_total_limit = 2  # how many are kept; -1: all",
        "",
    ]
    if page.style == "speed":
        lines += ["# Log", f"log_interval = {page.log_interval}", ""]
    lines += ["# Questions that are asked while training", f"evaluation_freq = {page.num_questions_iters}"]
    if page.questions is not None:
        system = {"": "''", "agent": repr(AGENT)}.get(page.system, f"SYSTEM_TEMPLATE.{page.system}")
        lines += [f"SYSTEM = {system}", texts("evaluation_inputs", QUESTIONS[page.questions])]
    return "\n".join(lines)


def path_variable(row: Source, alone: bool) -> str:
    """Return the name of the variable that holds the place of the rows."""
    return "data_path" if alone and not row.alone and row.path_variable.endswith("_path") else row.path_variable


def variable(row: Source, alone: bool) -> str:
    """Return the name of the variable that holds the data set."""
    return "train_dataset" if alone and not row.alone else row.variable
