"""Optimiser, precision, schedule and length of a 0.1.x run."""

from xtuner.config.table import Table
from xtuner.errors import UserError
from xtuner.legacy.phrase import Phrase, as_phrase
from xtuner.legacy.vocabulary import OPTIMISERS, dotted

LOOPS = ("TrainLoop", "EpochBasedTrainLoop", "IterBasedTrainLoop")


def read_optim(root: Phrase, loop: Table) -> Table:
    """Translate `optim_wrapper` to the table of an `OptimSpec`; adds accumulation and precision to `loop`.

    Raises:
        UserError: a word or an argument that is not known or cannot be followed.
    """
    root.need("optim_wrapper")
    wrapper = root.phrase("optim_wrapper", "AmpOptimWrapper", "OptimWrapper", "DeepSpeedOptimWrapper")
    assert wrapper is not None
    wrapper.role = "optim_wrapper"
    spec = Table(file=wrapper.table.file, line=wrapper.table.line)
    wrapper.need("optimizer")
    optimizer = wrapper.phrase("optimizer", *OPTIMISERS)
    assert optimizer is not None
    spec.put("name", OPTIMISERS[optimizer.word], optimizer.line("type"))
    optimizer.need("lr")
    for argument in ("lr", "betas", "eps"):
        optimizer.move(argument, spec, argument)
    if optimizer.word == "SGD":
        spec.put("betas", (optimizer.number("momentum", 0.0), 0.999), optimizer.line("momentum"))
    # AdamW of torch decays by 0.01 unless told otherwise
    optimizer.move("weight_decay", spec, "weight_decay", default=0.01 if optimizer.word == "AdamW" else None)
    if optimizer.word == "Adam" and spec.get("weight_decay"):
        raise UserError(
            f"{optimizer.where('weight_decay')}: Adam adds the decay to the gradient, which is not done here.",
            "Write type=AdamW, or weight_decay=0, with which the two are the same.",
        )
    for argument, usual in (("amsgrad", False), ("adamw_mode", True), ("adam_w_mode", True), ("maximize", False)):
        optimizer.only(argument, usual, fix=f"Remove {argument}.")
    optimizer.done()
    read_groups(wrapper)
    clip = wrapper.part("clip_grad")
    spec.put("max_norm", None, wrapper.line("clip_grad"))
    if clip is not None:
        clip.move("max_norm", spec, "max_norm")
        clip.done()
    wrapper.move("accumulative_counts", loop, "accumulate")
    dtype = wrapper.take("dtype")
    if wrapper.word == "DeepSpeedOptimWrapper":
        read_strategy_optim(root, spec, loop)
    elif wrapper.word == "OptimWrapper":
        loop.put("precision", "float32", wrapper.line("type"))
    elif dtype is not None and (dotted(dtype) or "").removeprefix("torch.") != "float16":
        loop.put("precision", (dotted(dtype) or str(dtype)).removeprefix("torch."), wrapper.line("dtype"))
    wrapper.done()
    return spec


def read_groups(wrapper: Phrase) -> None:
    """Take `paramwise_cfg`: norms and biases never decay, and all weights have one learning rate.

    Raises:
        UserError: it asks for something else.
    """
    wrapper.only(
        "constructor", None, "DefaultOptimWrapperConstructor", fix="Remove it: weights have one learning rate."
    )
    groups = wrapper.part("paramwise_cfg")
    if groups is None:
        return
    for argument in ("bias_decay_mult", "norm_decay_mult", "flat_decay_mult"):
        groups.only(argument, None, 0, 1, fix="Remove it: norms and biases never decay.")
    groups.take("bypass_duplicate")
    for argument in ("custom_keys", "bias_lr_mult", "dwconv_decay_mult", "dcn_offset_lr_mult"):
        groups.only(argument, None, 1, {}, fix=f"Remove {argument}: weights have one learning rate and one decay.")
    groups.done()


def read_strategy_optim(root: Phrase, spec: Table, loop: Table) -> None:
    """Take what 0.1.x moved from the optimiser to `strategy` when it trained with --deepspeed."""
    strategy = root.phrase("strategy", "DeepSpeedStrategy")
    if strategy is None:
        return
    strategy.move("gradient_accumulation_steps", loop, "accumulate")
    strategy.move("gradient_clipping", spec, "max_norm")


def read_loop(root: Phrase, loop: Table) -> None:
    """Translate `train_cfg` into epochs or iterations."""
    root.need("train_cfg")
    cfg = root.part("train_cfg")
    assert cfg is not None
    if cfg.take("type") is not None:
        as_phrase(cfg.table, LOOPS, "train_cfg", cfg.where())
    cfg.move("max_epochs", loop, "epochs")
    if cfg.take("max_iters") is not None:
        cfg.move("max_iters", loop, "max_iters")
    if "epochs" not in loop and "max_iters" not in loop:
        raise UserError(f"{cfg.where()}: train_cfg does not say how long to train.", "Add max_epochs=3.")
    cfg.done()
