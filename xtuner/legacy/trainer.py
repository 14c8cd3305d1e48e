"""Configs with `framework = 'huggingface'`: their `TrainingArguments` say what the other configs say in five parts."""

from xtuner.config.table import Table
from xtuner.errors import UserError
from xtuner.legacy.data import DATASETS, add_data
from xtuner.legacy.model import LOADERS, check_trainable, read_checkpoint, read_lora
from xtuner.legacy.phrase import Phrase, short

OPTIMISERS: dict[str, str] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), "adamw_8bit"),
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit"), "paged_adamw"),
    "paged_adamw_8bit": "paged_adamw_8bit",
    "sgd": "sgd",
}
"""Values of `optim` -> those of `optim.name`."""
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}

OPTIM = {"learning_rate": "lr", "weight_decay": "weight_decay", "adam_epsilon": "eps", "max_grad_norm": "max_norm"}
HARMLESS = (
    *("do_train", "ddp_find_unused_parameters", "report_to", "remove_unused_columns", "dataloader_num_workers"),
    *("group_by_length", "logging_strategy", "overwrite_output_dir", "logging_dir", "save_safetensors", "tf32"),
)
"""Arguments without effect: there is one engine, nothing is padded, and everything goes into the work dir."""


def read_bare_model(root: Phrase) -> Table:
    """Translate a model without `SupervisedFinetune` around it, and the top-level `lora` beside it."""
    llm = root.phrase("model", *LOADERS)
    assert llm is not None
    spec = Table(file=llm.table.file, line=llm.table.line)
    read_checkpoint(llm, spec)
    lora = root.phrase("lora", "LoraConfig")
    if lora is not None:
        spec.put("lora", read_lora(lora), root.line("lora"))
    check_trainable(spec, root.where("model"))
    return spec


def read_trainer(root: Phrase, spec: Table) -> None:
    """Translate a whole config of this kind into the table of a `RunSpec`.

    Raises:
        UserError: a word or an argument that is not known or cannot be followed.
    """
    model = read_bare_model(root)
    root.need("training_args")
    given = root.phrase("training_args", "TrainingArguments")
    assert given is not None
    names = ("data", "optim", "schedule", "loop")
    data, optim, schedule, loop = (Table(file=given.table.file, line=given.table.line) for _ in names)
    read_length(given, loop)
    read_optimiser(given, optim)
    read_rate(given, schedule, loop)
    checkpoint = read_saving(given, loop)
    if given.take("gradient_checkpointing") is not None:
        given.move("gradient_checkpointing", model, "recompute")
    if given.take("output_dir") is not None:
        given.move("output_dir", spec, "work_dir")
    given.move("seed", spec, "seed", default=42)
    for argument in HARMLESS:
        given.take(argument)
    given.done()
    root.need("train_dataset")
    rows = root.phrase("train_dataset", *DATASETS)
    assert rows is not None
    objective = Table({"name": "sft", "options": Table()}, file=model.file, line=model.line)
    add_data(rows, root, model, objective, data)
    spec.put("model", model, root.line("model"))
    spec.put("data", data, root.line("train_dataset"))
    for name, part in zip((*names[1:], "checkpoint"), (optim, schedule, loop, checkpoint), strict=True):
        spec.put(name, part, root.line("training_args"))


def read_length(given: Phrase, loop: Table) -> None:
    """Translate steps, their size and their number format; a step of the Trainer is one of the optimiser."""
    given.move("per_device_train_batch_size", loop, "batch_size", default=8)
    given.move("gradient_accumulation_steps", loop, "accumulate", default=1)
    given.move("num_train_epochs", loop, "epochs", default=3)
    if given.number("max_steps", -1) > 0:
        loop.put("max_iters", in_iterations(given, "max_steps", loop), given.line("max_steps"))
    if given.number("logging_steps", 0) >= 1:
        loop.put("log_every", in_iterations(given, "logging_steps", loop), given.line("logging_steps"))
    given.take("fp16")  # float16 or better: the best that the device has
    if given.take("bf16"):
        loop.put("precision", "bfloat16", given.line("bf16"))


def in_iterations(given: Phrase, argument: str, loop: Table) -> int:
    """Return a number of optimiser steps as iterations."""
    return int(given.number(argument, 1)) * int(loop["accumulate"])


def read_optimiser(given: Phrase, optim: Table) -> None:
    """Translate the optimiser."""
    name = given.take("optim", "adamw_torch")
    if name not in OPTIMISERS:
        raise UserError(f"{given.where('optim')}: optim is {short(name)}.", f"Known: {', '.join(OPTIMISERS)}.")
    optim.put("name", OPTIMISERS[name], given.line("optim"))
    optim.put("lr", 5e-5, given.table.line)
    for argument, key in OPTIM.items():
        given.move(argument, optim, key)
    betas = (given.number("adam_beta1", 0.9), given.number("adam_beta2", 0.999))
    optim.put("betas", betas, given.line("adam_beta1"))


def read_rate(given: Phrase, schedule: Table, loop: Table) -> None:
    """Translate the learning rate over the run; the warm-up of the Trainer begins at nothing."""
    name = given.take("lr_scheduler_type", "linear")
    if name not in SCHEDULES:
        where = given.where("lr_scheduler_type")
        raise UserError(f"{where}: lr_scheduler_type is {short(name)}.", f"Known: {', '.join(SCHEDULES)}.")
    schedule.put("name", SCHEDULES[name], given.line("lr_scheduler_type"))
    steps, share = given.number("warmup_steps", 0), given.number("warmup_ratio", 0)
    if name == "constant":
        steps = share = 0
    schedule.put("warmup", share, given.line("warmup_ratio"))
    if steps:
        schedule.put("warmup_iters", in_iterations(given, "warmup_steps", loop), given.line("warmup_steps"))
    if steps or share:
        schedule.put("warmup_start", 0.0, given.table.line)


def read_saving(given: Phrase, loop: Table) -> Table:
    """Translate when the Trainer saves."""
    spec = Table(file=given.table.file, line=given.table.line)
    strategy = given.take("save_strategy", "steps")
    if strategy not in ("no", "steps", "epoch"):
        where = given.where("save_strategy")
        raise UserError(f"{where}: save_strategy is {short(strategy)}.", "Known: no, steps, epoch.")
    steps = int(given.number("save_steps", 500)) * int(loop["accumulate"])
    spec.put("every", {"no": None, "steps": steps, "epoch": 1}[strategy], given.line("save_steps"))
    spec.put("by_epoch", strategy == "epoch", given.line("save_strategy"))
    spec.put("keep", given.take("save_total_limit"), given.line("save_total_limit"))
    return spec
