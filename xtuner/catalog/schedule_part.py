"""Writes PART 4 of a config: the optimiser, the learning rate over time, where training ends."""

from xtuner.catalog.mmlu import mmlu_loops
from xtuner.catalog.page import Page, TextPage
from xtuner.catalog.text import assign, call


def schedule(page: Page) -> str:
    """Write PART 4."""
    optimizer = call([("type", "optim_type"), ("lr", "lr"), ("betas", "betas"), ("weight_decay", "weight_decay")])
    wrapper = call(
        [
            ("type", "AmpOptimWrapper"),
            ("optimizer", optimizer),
            ("clip_grad", call([("max_norm", "max_norm"), ("error_if_nonfinite", "False")])),
            ("accumulative_counts", "accumulative_counts"),
            ("loss_scale", "'dynamic'"),
            ("dtype", "'float16'") if page.half else None,
        ]
    )
    border = f"{page.warmup_variable} * max_epochs"
    warmup = call(
        [
            ("type", page.linear),
            ("start_factor", page.warmup_start),
            ("by_epoch", "True"),
            ("begin", "0"),
            ("end", border),
            ("convert_to_iter_based", "True"),
        ]
    )
    cosine = call(
        [
            ("type", "CosineAnnealingLR"),
            ("eta_min", page.eta_min),
            ("by_epoch", "True"),
            ("begin", border if page.warmup_start else "0"),
            ("end", "max_epochs"),
            ("convert_to_iter_based", "True"),
        ]
    )
    comment = "# The learning rate falls from lr to eta_min along a cosine"
    if page.warmup_start:
        comment = "# The learning rate rises to lr during warm-up, then falls to eta_min along a cosine"
    mmlu = isinstance(page, TextPage) and page.mmlu
    loop = call(
        [
            ("type", "TrainLoop"),
            ("max_epochs", "max_epochs") if page.max_iters is None else ("max_iters", str(page.max_iters)),
            ("val_interval", "evaluate_steps") if mmlu else None,
        ]
    )
    return "\n\n".join(
        [
            assign("optim_wrapper", wrapper),
            f"{comment}\n{assign('param_scheduler', [warmup, cosine] if page.warmup_start else [cosine])}",
            assign("train_cfg", loop) + (f"\n{mmlu_loops()}" if mmlu else ""),
        ]
    )
