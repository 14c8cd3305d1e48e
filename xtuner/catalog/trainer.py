"""Writes the parts of configs that train with the Trainer of transformers."""

from xtuner.catalog.data_part import data_set
from xtuner.catalog.model_part import language_model, lora, tokenizer
from xtuner.catalog.page import TrainerPage
from xtuner.catalog.sources import SOURCES
from xtuner.catalog.text import assign, call, number

PATH = "dataset_name_or_path"


def settings(page: TrainerPage) -> str:
    """Write PART 1."""
    lines = [
        "# Who trains",
        "framework = 'huggingface'",
        "",
        "# Model",
        f"pretrained_model_name_or_path = {page.path!r}",
        "",
        "# Data",
        f"{PATH} = {SOURCES[page.data[0]].path!r}",
        f"prompt_template = PROMPT_TEMPLATE.{page.template}",
        f"max_length = {page.max_length}  # tokens",
        f"pack_to_max_length = {page.pack}",
    ]
    return "\n".join(lines)


def model(page: TrainerPage) -> str:
    """Write PART 2."""
    assert page.lora is not None
    parts = [("tokenizer", tokenizer(page)), ("model", language_model(page)), ("lora", lora(page.lora))]
    return "\n\n".join(assign(name, part) for name, part in parts)


def data(page: TrainerPage) -> str:
    """Write PART 3."""
    return assign("train_dataset", data_set(page, SOURCES[page.data[0]], PATH))


def schedule(page: TrainerPage) -> str:
    """Write PART 4."""
    arguments = call(
        [
            ("type", "TrainingArguments"),
            ("do_train", "True"),
            ("per_device_train_batch_size", str(page.batch_size)),
            ("gradient_accumulation_steps", str(page.accumulate)),
            ("num_train_epochs", str(page.epochs)),
            ("optim", repr(page.optimizer)),
            ("learning_rate", number(page.lr)),
            ("weight_decay", str(page.weight_decay)),
            ("lr_scheduler_type", "'cosine'"),
            ("warmup_steps", "100"),
            ("fp16", "True"),
            ("logging_steps", "1"),
            ("save_strategy", "'steps'"),
            ("save_steps", "1000"),
            ("save_total_limit", str(page.save_total)),
            ("ddp_find_unused_parameters", "False"),
        ]
    )
    return assign("training_args", arguments)


def runtime(page: TrainerPage) -> str:
    """Write PART 5."""
    return "trainer = Trainer"
