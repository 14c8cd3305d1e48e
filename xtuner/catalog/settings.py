"""Writes PART 1 of a config, the variables that people change, and the blocks of it that several kinds share."""

from xtuner.catalog.mmlu import mmlu_settings
from xtuner.catalog.page import Page, TextPage
from xtuner.catalog.questions import AGENT, PICTURE, QUESTIONS
from xtuner.catalog.sources import SOURCES, SourceRow
from xtuner.catalog.text import number, texts


def settings(page: TextPage) -> str:
    """Write PART 1 of supervised training on texts."""
    rows = [SOURCES[key] for key in page.data]
    alone = len(rows) == 1
    lines = ["# Model", f"pretrained_model_name_or_path = {page.path!r}"]
    if page.tokenizer_path:
        lines.append(f"tokenizer_path = {page.tokenizer_path!r}  # its tokens are added to the model")
    lines += [f"use_varlen_attn = {page.varlen}", "", "# Data"]
    moss = any(row.kind == "MOSSSFTDataset" for row in rows)
    if moss:
        lines.append(f"bot_name = {page.bot_name!r}  # what the model calls itself")
    for row in rows:
        lines.append(f"{path_variable(row, alone)} = {list(row.path) if isinstance(row.path, tuple) else row.path!r}")
        lines += [f"{name} = {broken(value)}" for name, value in row.settings]
    if page.template is not None and (page.questions or not rows[0].tokens):
        lines.append(f"prompt_template = PROMPT_TEMPLATE.{page.template}")
    if page.max_dataset_length is not None:
        lines.append(f"max_dataset_length = {page.max_dataset_length}")
    lines.append(f"max_length = {page.max_length}  # tokens")
    if page.max_positions:
        lines.append(f"max_position_embeddings = {page.max_positions}")
    if not moss:
        lines.append(f"pack_to_max_length = {page.pack}")
    if page.mmlu:
        lines += mmlu_settings()
    return "\n".join([*lines, "", *parallel(page), *steps(page), *saving(page), *asking(page)]).rstrip()


def broken(value: str) -> str:
    """Put an item of a long list on each line."""
    return value if len(value) < 88 else value.replace("[", "[\n    ").replace(", ", ",\n    ").replace("]", ",\n]")


def parallel(page: Page) -> list[str]:
    """Write how many cards share a sequence."""
    if page.parallel is None:
        return []
    return ["# Cards that share one sequence", f"sequence_parallel_size = {page.parallel}", ""]


def steps(page: Page) -> list[str]:
    """Write how long and how fast is trained."""
    lines = ["# Steps", f"batch_size = {page.batch_size}  # per card"]
    lines.append(f"accumulative_counts = {page.accumulate}  # batches per optimizer step")
    if page.parallel is not None:
        lines.append("accumulative_counts *= sequence_parallel_size")
    return [
        *lines,
        f"dataloader_num_workers = {page.workers}",
        f"max_epochs = {page.epochs}",
        "optim_type = AdamW",
        f"lr = {number(page.lr)}",
        f"betas = {page.betas}",
        f"weight_decay = {page.weight_decay}",
        "max_norm = 1  # longest gradient",
        f"{page.warmup_variable} = {page.warmup}",
        "",
    ]


def saving(page: Page) -> list[str]:
    """Write when checkpoints are saved and lines are logged."""
    lines = [
        "# Checkpoints",
        f"save_steps = {page.save_steps}",
        f"save_total_limit = {page.save_total}  # how many are kept; -1: all",
    ]
    if page.save_variable:
        lines.append(f"save_optimizer = {page.save_optimizer}  # needed to go on from a checkpoint")
    lines.append("")
    return [*lines, "# Log", f"log_interval = {page.log_interval}", ""] if page.log_variable else lines


def asking(page: Page) -> list[str]:
    """Write what is asked while training."""
    if page.num_questions_iters is None:
        return []
    if page.questions is None:
        return ["# Not used: this config asks nothing while training", f"evaluation_freq = {page.num_questions_iters}"]
    lines = ["# Questions that are asked while training", f"evaluation_freq = {page.num_questions_iters}"]
    if page.system is not None:
        system = {"": "''", "agent": repr(AGENT)}.get(page.system, f"SYSTEM_TEMPLATE.{page.system}")
        lines.append(f"SYSTEM = {system}")
    if "evaluation_images" in page.question_options:
        lines.append(f"evaluation_images = {PICTURE!r}")
    return [*lines, texts("evaluation_inputs", QUESTIONS[page.questions])]


def path_variable(row: SourceRow, alone: bool) -> str:
    """Return the name of the variable that holds the place of the rows."""
    kept = row.alone or row.keeps_path or not row.path_variable.endswith("_path")
    return "data_path" if alone and not kept else row.path_variable


def variable(row: SourceRow, alone: bool) -> str:
    """Return the name of the variable that holds the data set."""
    return "train_dataset" if alone and not row.alone else row.variable
