"""Writes PART 2 to 5 of a config: what is made of the variables of PART 1."""

from xtuner.catalog.page import Page
from xtuner.catalog.settings import path_variable, variable
from xtuner.catalog.sources import SOURCES, Source
from xtuner.catalog.text import Call, assign, call, number, write


def model(page: Page) -> str:
    """Write PART 2."""
    further = [(name, repr(value)) for name, value in page.tokenizer.items()]
    tokenizer = call(
        [
            ("type", "AutoTokenizer.from_pretrained"),
            ("pretrained_model_name_or_path", "pretrained_model_name_or_path"),
            ("trust_remote_code", "True"),
            *further,
            ("padding_side", repr(page.padding_side)),
        ]
    )
    quant = call(
        [
            ("type", "BitsAndBytesConfig"),
            ("load_in_4bit", "True"),
            ("load_in_8bit", "False"),
            ("llm_int8_threshold", "6.0"),
            ("llm_int8_has_fp16_weight", "False"),
            ("bnb_4bit_compute_dtype", "torch.float16"),
            ("bnb_4bit_use_double_quant", "True"),
            ("bnb_4bit_quant_type", "'nf4'"),
            ("bnb_4bit_quant_storage", "torch.float16") if page.quant_storage else None,
        ]
    )
    llm = call(
        [
            ("type", "AutoModelForCausalLM.from_pretrained"),
            ("pretrained_model_name_or_path", "pretrained_model_name_or_path"),
            ("trust_remote_code", "True"),
            ("torch_dtype", f"torch.{page.dtype}") if page.dtype else None,
            ("attn_implementation", repr(page.attention)) if page.attention else None,
            ("load_in_8bit", "True") if page.bits == 8 else None,
            ("quantization_config", quant) if page.bits == 4 else None,
        ]
    )
    lora = None
    if page.lora is not None:
        options = [
            (name, number(value) if isinstance(value, float) else repr(value)) for name, value in page.lora.items()
        ]
        lora = call([("type", "LoraConfig"), *options, ("bias", "'none'"), ("task_type", "'CAUSAL_LM'")])
    whole = call(
        [
            ("type", "SupervisedFinetune"),
            ("use_varlen_attn", "use_varlen_attn"),
            ("llm", llm),
            ("lora", lora) if lora else None,
        ]
    )
    return f"{assign('tokenizer', tokenizer)}\n\n{assign('model', whole)}"


def data(page: Page) -> str:
    """Write PART 3."""
    rows = [SOURCES[key] for key in page.data]
    alone = len(rows) == 1
    blocks = [assign(variable(row, alone), data_set(page, row, alone)) for row in rows]
    name = variable(rows[0], alone)
    if not alone:
        name = "train_dataset"
        blocks.append(assign(name, call([("type", "ConcatDataset"), ("datasets", [row.variable for row in rows])])))
    collate = call([("type", "default_collate_fn"), ("use_varlen_attn", "use_varlen_attn")])
    if page.style == "intern":
        sampler = call([("type", "InternRepoSampler"), ("shuffle", "True"), ("seed", "1024")])
    elif page.style == "speed":
        sampler = call([("type", "SequenceParallelSampler"), ("seed", "1024")])
    elif page.parallel is None:
        sampler = call([("type", "DefaultSampler"), ("shuffle", "True")])
    else:
        blocks.append("sampler = SequenceParallelSampler if sequence_parallel_size > 1 else DefaultSampler")
        sampler = call([("type", "sampler"), ("shuffle", "True")])
    batches = call([("type", "BatchSampler"), ("drop_last", "True"), ("batch_size", "1")])
    loader = call(
        [
            ("batch_size", "batch_size"),
            ("num_workers", "dataloader_num_workers"),
            ("dataset", name),
            ("sampler", sampler),
            ("batch_sampler", batches) if page.style == "intern" else None,
            ("collate_fn", collate),
        ]
    )
    return "\n\n".join([*blocks, assign("train_dataloader", loader)])


def data_set(page: Page, row: Source, alone: bool) -> Call:
    """Write one data set."""
    path = path_variable(row, alone)
    loader = call([("type", row.loader_type), *((name, value.format(path=path)) for name, value in row.loader)])
    if row.kind == "build_packed_dataset":
        return call([("type", row.kind), ("dataset_cfg", loader), ("packed_length", "max_length"), ("seed", "1024")])
    template = "None"
    if page.template is not None:
        template = write(call([("type", "template_map_fn_factory"), ("template", "prompt_template")]))
    return call(
        [
            ("type", row.kind),
            ("dataset", loader),
            ("tokenizer", "tokenizer"),
            ("max_length", "max_length"),
            ("dataset_map_fn", row.map_function or "None") if row.map_function != "" else None,
            ("template_map_fn", template),
            ("max_dataset_length", "max_dataset_length") if page.max_dataset_length is not None else None,
            ("remove_unused_columns", "True"),
            ("shuffle_before_pack", str(page.shuffle_before_pack)),
            ("pack_to_max_length", "pack_to_max_length"),
            ("use_varlen_attn", "use_varlen_attn"),
        ]
    )


def optimiser(page: Page) -> str:
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
    intern = page.style == "intern"
    border = "warm_up_ratio * max_epochs" if page.warmup is None else "warmup_ratio * max_epochs"
    warmup = call(
        [
            ("type", "'LinearLR'" if intern else "LinearLR"),
            ("start_factor", "1 / 40" if intern else "1e-5"),
            ("by_epoch", "True"),
            ("begin", "0"),
            ("end", border),
            ("convert_to_iter_based", "True"),
        ]
    )
    cosine = call(
        [
            ("type", "CosineAnnealingLR"),
            ("eta_min", "lr * 0.15" if intern else "0.0"),
            ("by_epoch", "True"),
            ("begin", border),
            ("end", "max_epochs"),
            ("convert_to_iter_based", "True"),
        ]
    )
    loop = call([("type", "TrainLoop"), ("max_epochs", "max_epochs")])
    return (
        f"{assign('optim_wrapper', wrapper)}\n\n"
        f"# The learning rate rises to lr during warm-up, then falls to eta_min along a cosine\n"
        f"{assign('param_scheduler', [warmup, cosine])}\n\n"
        f"{assign('train_cfg', loop)}"
    )


def runtime(page: Page) -> str:
    """Write PART 5."""
    info = call(
        [
            ("type", "DatasetInfoHook"),
            ("tokenizer", "tokenizer"),
            ("is_intern_repo_dataset", "True") if page.style == "intern" else None,
        ]
    )
    chat = call(
        [
            ("type", "EvaluateChatHook"),
            ("tokenizer", "tokenizer"),
            ("every_n_iters", "evaluation_freq"),
            ("evaluation_inputs", "evaluation_inputs"),
            ("system", "SYSTEM"),
            ("prompt_template", "prompt_template") if page.template is not None else None,
        ]
    )
    speed = call([("type", "ThroughputHook")])
    hooks = [] if page.style == "speed" else [info]
    if page.throughput == "before":
        hooks.append(speed)
    if page.questions is not None:
        hooks.append(chat)
    if page.throughput == "after":
        hooks.append(speed)
    interval = "log_interval" if page.style == "speed" else str(page.log_interval)
    checkpoint = call(
        [
            ("type", "CheckpointHook"),
            ("by_epoch", "False"),
            ("interval", "save_steps"),
            ("max_keep_ckpts", "save_total_limit"),
            ("save_last", "False") if page.style == "speed" else None,
        ],
        spread=True,
    )
    defaults = call(
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
    environment = call(
        [
            ("cudnn_benchmark", "False"),
            ("mp_cfg", call([("mp_start_method", "'fork'"), ("opencv_num_threads", "0")])),
            ("dist_cfg", call([("backend", "'nccl'")])),
        ]
    )
    processor = call(
        [
            ("by_epoch", "False"),
            ("window_size", interval) if page.log_window else None,
            ("mean_pattern", "r'.*(loss|time|data_time|grad_norm|tflops).*'") if page.style == "intern" else None,
        ]
    )
    return "\n\n".join(
        [
            f"# Shows the data, and asks the questions of PART 1 before, while and after training\n"
            f"{assign('custom_hooks', hooks)}",
            "if use_varlen_attn:\n    custom_hooks += [dict(type=VarlenAttnArgsToMessageHubHook)]",
            assign("default_hooks", defaults),
            assign("env_cfg", environment),
            "visualizer = None",
            "log_level = 'INFO'",
            "# A checkpoint whose weights training begins with\nload_from = None",
            "# True: go on from load_from, or from the last checkpoint of the work dir\nresume = False",
            "randomness = dict(seed=None, deterministic=False)",
            assign("log_processor", processor),
        ]
    )
