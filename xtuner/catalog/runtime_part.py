"""Writes PART 5 of a config: what happens beside training, and the surroundings."""

from xtuner.catalog.page import Page
from xtuner.catalog.text import Call, assign, call


def hooks(page: Page) -> str:
    """Write `custom_hooks`: the data shown, questions asked, tokens per second measured."""
    info = chat = None
    if page.info is not None:
        info = call([("type", "DatasetInfoHook"), ("tokenizer", "tokenizer"), *page.info.items()])
    if page.questions is not None:
        chat = call(
            [
                ("type", "EvaluateChatHook"),
                ("tokenizer", "tokenizer"),
                ("every_n_iters", "evaluation_freq"),
                ("evaluation_inputs", "evaluation_inputs"),
                *page.question_options.items(),
                ("system", "SYSTEM") if page.system is not None else None,
                ("prompt_template", "prompt_template") if page.template is not None else None,
            ]
        )
    speed = call([("type", "ThroughputHook")])
    wanted = [
        info,
        speed if page.throughput == "before" else None,
        chat,
        speed if page.throughput == "after" else None,
        *(call([("type", hook)]) for hook in page.further_hooks),
    ]
    text = assign("custom_hooks", [hook for hook in wanted if hook is not None])
    shown = ["shows the data"] if info else []
    asked = ["asks the questions of PART 1 before, while and after training"] if chat else []
    if comment := ", and ".join([*shown, *asked]):
        text = f"# {comment[0].upper()}{comment[1:]}\n{text}"
    if page.varlen is not None:
        text += "\n\nif use_varlen_attn:\n    custom_hooks += [dict(type=VarlenAttnArgsToMessageHubHook)]"
    return text


def default_hooks(page: Page, interval: str) -> Call:
    """Write `default_hooks`: times, logs, checkpoints."""
    optimizer = None if page.save_optimizer else ("save_optimizer", "False")
    if page.save_variable:
        optimizer = ("save_optimizer", "save_optimizer")
    checkpoint = call(
        [
            ("type", "CheckpointHook"),
            ("by_epoch", "False"),
            ("interval", "save_steps"),
            ("max_keep_ckpts", "save_total_limit"),
            optimizer,
            ("save_last", "False") if not page.save_last else None,
        ],
        spread=True,
    )
    return call(
        [
            ("timer", call([("type", "IterTimerHook")])),
            ("logger", call([("type", "LoggerHook"), ("log_metric_by_epoch", "False"), ("interval", interval)])),
            ("param_scheduler", call([("type", "ParamSchedulerHook")])),
            ("checkpoint", checkpoint),
            ("sampler_seed", call([("type", "DistSamplerSeedHook")])),
        ],
        timer="times every iteration",
        logger="writes a line into the log every `interval` iterations",
        param_scheduler="moves the learning rate",
        checkpoint="saves every `save_steps` iterations, and at the end",
        sampler_seed="shuffles alike in all processes",
    )


def runtime(page: Page) -> str:
    """Write PART 5."""
    interval = "log_interval" if page.log_variable else str(page.log_interval)
    environment = call(
        [
            ("cudnn_benchmark", "False"),
            ("mp_cfg", call([("mp_start_method", "'fork'"), ("opencv_num_threads", "0")])),
            ("dist_cfg", call([("backend", "'nccl'")])),
        ]
    )
    processor = call(
        [
            ("by_epoch", str(page.log_by_epoch)) if page.log_by_epoch is not None else None,
            ("window_size", "log_interval" if page.log_variable else "1") if page.log_window else None,
            ("mean_pattern", "r'.*(loss|time|data_time|grad_norm|tflops).*'") if page.mean_pattern else None,
        ]
    )
    return "\n\n".join(
        [
            hooks(page),
            assign("default_hooks", default_hooks(page, interval)),
            assign("env_cfg", environment),
            "visualizer = None",
            "log_level = 'INFO'",
            "# A checkpoint whose weights training begins with\nload_from = None",
            "# True: go on from load_from, or from the last checkpoint of the work dir\nresume = False",
            "randomness = dict(seed=None, deterministic=False)",
            assign("log_processor", processor),
        ]
    )
