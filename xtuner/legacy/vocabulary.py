"""The words of 0.1.x configs: where each comes from, what it is called here, and what is accepted without effect."""

from typing import Any

from xtuner.config.ref import Ref

# short word -> package that it is imported from (any module of it: 0.1.x moved words about between versions)
WORDS: dict[str, str] = {
    "SupervisedFinetune": "xtuner",
    "AutoModelForCausalLM.from_pretrained": "transformers",
    "MistralForCausalLM.from_pretrained": "transformers",
    "AutoTokenizer.from_pretrained": "transformers",
    "LlamaTokenizer.from_pretrained": "transformers",
    "BitsAndBytesConfig": "transformers",
    "LoraConfig": "peft",
    "process_hf_dataset": "xtuner",
    "ConcatDataset": "xtuner",
    "load_dataset": "datasets",
    "template_map_fn_factory": "xtuner",
    "template_map_fn": "xtuner",
    "default_collate_fn": "xtuner",
    "DefaultSampler": "mmengine",
    "SequenceParallelSampler": "xtuner",
    "InternRepoSampler": "xtuner",
    "BatchSampler": "torch",
    "AmpOptimWrapper": "mmengine",
    "OptimWrapper": "mmengine",
    "AdamW": "torch",
    "SGD": "torch",
    "PagedAdamW": "bitsandbytes",
    "PagedAdamW32bit": "bitsandbytes",
    "PagedAdamW8bit": "bitsandbytes",
    "AdamW8bit": "bitsandbytes",
    "LinearLR": "mmengine",
    "CosineAnnealingLR": "mmengine",
    "ConstantLR": "mmengine",
    "TrainLoop": "xtuner",
    "EpochBasedTrainLoop": "mmengine",
    "IterBasedTrainLoop": "mmengine",
    "CheckpointHook": "mmengine",
    "DistSamplerSeedHook": "mmengine",
    "IterTimerHook": "mmengine",
    "LoggerHook": "mmengine",
    "ParamSchedulerHook": "mmengine",
    "RuntimeInfoHook": "mmengine",
    "DatasetInfoHook": "xtuner",
    "EvaluateChatHook": "xtuner",
    "ThroughputHook": "xtuner",
    "VarlenAttnArgsToMessageHubHook": "xtuner",
    "Visualizer": "mmengine",
    "LocalVisBackend": "mmengine",
}

# words of parts that this version does not have yet: word -> (package, what it is for)
LATER: dict[str, tuple[str, str]] = {
    "DPO": ("xtuner", "preference training"),
    "ORPO": ("xtuner", "preference training"),
    "RewardModel": ("xtuner", "reward models"),
    "build_preference_dataset": ("xtuner", "preference data"),
    "load_jsonl_dataset": ("xtuner", "preference data"),
    "orpo_dpo_mix_40k_map_fn": ("xtuner", "preference data"),
    "intel_orca_dpo_map_fn": ("xtuner", "preference data"),
    "preference_collate_fn": ("xtuner", "preference data"),
    "LLaVAModel": ("xtuner", "models that see pictures"),
    "LLaVADataset": ("xtuner", "data with pictures"),
    "LengthGroupedSampler": ("xtuner", "data with pictures"),
    "RefCOCOJsonDataset": ("xtuner", "data with pictures"),
    "InvRefCOCOJsonDataset": ("xtuner", "data with pictures"),
    "InternVL_V1_5": ("xtuner", "models that see pictures"),
    "InternVL_V1_5_Dataset": ("xtuner", "data with pictures"),
    "CLIPImageProcessor.from_pretrained": ("transformers", "data with pictures"),
    "CLIPVisionModel.from_pretrained": ("transformers", "models that see pictures"),
    "MMLUMetric": ("xtuner", "the MMLU test"),
    "mmlu_collate_fn": ("xtuner", "the MMLU test"),
    "MOSSSFTDataset": ("xtuner", "MOSS data"),
    "process_ms_dataset": ("xtuner", "data sets of ModelScope"),
    "MsDataset.load": ("modelscope", "data sets of ModelScope"),
    "build_packed_dataset": ("xtuner", "tokenised InternEvo data"),
    "load_intern_repo_tokenized_dataset": ("xtuner", "tokenised InternEvo data"),
    "load_intern_repo_untokenized_dataset": ("xtuner", "tokenised InternEvo data"),
    "load_from_disk": ("datasets", "prepared data sets"),
    "DeepseekV2ForCausalLM.from_pretrained": ("xtuner", "experts in shards"),
    "HFCheckpointHook": ("xtuner", "training with DeepSpeed"),
    "TensorboardVisBackend": ("mmengine", "writing to TensorBoard"),
    "WandbVisBackend": ("mmengine", "writing to Weights & Biases"),
    "Trainer": ("transformers", "configs of the HuggingFace Trainer"),
    "TrainingArguments": ("transformers", "configs of the HuggingFace Trainer"),
}

# (word, argument) of parts that this version does not have yet; None, False and empty values are fine
LATER_ARGUMENTS: dict[tuple[str, str], str] = {
    ("SupervisedFinetune", "tokenizer"): "adding tokens to a model",
    ("SupervisedFinetune", "max_position_embeddings"): "stretching the positions of a model",
    ("load_dataset", "data_dir"): "a folder inside a data set",
    ("load_dataset", "revision"): "a revision of a data set",
    ("process_hf_dataset", "with_image_token"): "data with pictures",
    ("EvaluateChatHook", "evaluation_images"): "questions with pictures",
    ("EvaluateChatHook", "image_processor"): "questions with pictures",
}

# top-level names of the parts that this version does not have yet
LATER_VARIABLES: dict[str, str] = {
    "val_dataloader": "the MMLU test",
    "val_evaluator": "the MMLU test",
    "test_dataloader": "the MMLU test",
    "test_evaluator": "the MMLU test",
    "framework": "configs of the HuggingFace Trainer",
    "strategy": "training with DeepSpeed",
}

# (word, argument) that is accepted without effect -> why nothing is lost
HARMLESS: dict[tuple[str, str], str] = {
    (
        "AutoModelForCausalLM.from_pretrained",
        "trust_remote_code",
    ): "no code of a checkpoint runs",
    ("AutoModelForCausalLM.from_pretrained", "device_map"): "the engine places the model",
    ("AutoModelForCausalLM.from_pretrained", "low_cpu_mem_usage"): "loading always is",
    ("AutoModelForCausalLM.from_pretrained", "use_cache"): "training never caches",
    ("AutoModelForCausalLM.from_pretrained", "use_safetensors"): "both kinds of files are read",
    ("AutoTokenizer.from_pretrained", "trust_remote_code"): "no code of a checkpoint runs",
    ("AutoTokenizer.from_pretrained", "padding_side"): "batches are never padded",
    ("AutoTokenizer.from_pretrained", "pad_token"): "batches are never padded",
    ("AutoTokenizer.from_pretrained", "use_fast"): "fast and slow tokenizers give the same tokens",
    ("AutoTokenizer.from_pretrained", "add_bos_token"): "BOS and EOS are placed by the chat template",
    ("AutoTokenizer.from_pretrained", "add_eos_token"): "BOS and EOS are placed by the chat template",
    ("AutoTokenizer.from_pretrained", "model_max_length"): "max_length decides",
    ("BitsAndBytesConfig", "llm_int8_has_fp16_weight"): "base weights are frozen, so they are stored in 8 bits",
    ("BitsAndBytesConfig", "bnb_4bit_quant_storage"): "storage is not sharded in one process",
    ("LoraConfig", "task_type"): "the model is a causal language model",
    ("LoraConfig", "inference_mode"): "this is training",
    ("SupervisedFinetune", "use_varlen_attn"): "samples of a pack never see each other here",
    ("process_hf_dataset", "use_varlen_attn"): "samples of a pack never see each other here",
    ("process_hf_dataset", "remove_unused_columns"): "only tokens are kept",
    ("process_hf_dataset", "shuffle_before_pack"): "packs are filled best-fit, and drawn in random order",
    ("process_hf_dataset", "map_num_proc"): "data is prepared by as many processes as pay",
    ("load_dataset", "ignore_verifications"): "removed from `datasets`",
    ("load_dataset", "verification_mode"): "files are read directly",
    ("load_dataset", "trust_remote_code"): "no code of a data set runs",
    ("load_dataset", "num_proc"): "data is prepared by as many processes as pay",
    ("load_dataset", "keep_in_memory"): "data is streamed from disk",
    ("default_collate_fn", "use_varlen_attn"): "samples of a pack never see each other here",
    ("default_collate_fn", "pad_index"): "batches are never padded",
    ("default_collate_fn", "return_hf_format"): "there is one form of a batch",
    ("DefaultSampler", "round_up"): "there is one process",
    ("BatchSampler", "drop_last"): "the last batch of an epoch may be smaller; weights go by tokens",
    ("train_dataloader", "num_workers"): "data is prepared before training and read without delay",
    ("train_dataloader", "pin_memory"): "batches are moved in the background anyway",
    ("train_dataloader", "persistent_workers"): "there are no worker processes",
    ("train_dataloader", "prefetch_factor"): "there are no worker processes",
    ("optim_wrapper", "loss_scale"): "float16 is always scaled dynamically, bfloat16 needs none",
    ("optim_wrapper", "use_fsdp"): "the strategy decides",
    ("clip_grad", "error_if_nonfinite"): "a loss or gradient that is not finite always stops the run",
    ("param_scheduler", "T_max"): "the schedule ends with the run",
    ("train_cfg", "by_epoch"): "the loop counts both",
    ("train_cfg", "val_interval"): "there is nothing to validate on",
    ("train_cfg", "val_begin"): "there is nothing to validate on",
    ("CheckpointHook", "save_param_scheduler"): "the schedule is a function of the iteration",
    ("LoggerHook", "log_metric_by_epoch"): "logs say both",
    ("LoggerHook", "ignore_last"): "every interval is logged",
    ("LoggerHook", "interval_exp_name"): "the work dir has the name",
    ("DatasetInfoHook", "tokenizer"): "there is one tokenizer",
    ("DatasetInfoHook", "is_intern_repo_dataset"): "rows are shown in one form",
    ("EvaluateChatHook", "tokenizer"): "there is one tokenizer",
    ("ThroughputHook", "use_activation_checkpointing"): "read from the model",
    ("ThroughputHook", "hidden_size"): "read from the model",
    ("ThroughputHook", "num_layers"): "read from the model",
    ("ThroughputHook", "vocab_size"): "read from the model",
    ("ThroughputHook", "mlp_ratio"): "read from the model",
    ("ThroughputHook", "is_casual"): "read from the model",
    ("Visualizer", "vis_backends"): "scalars.json is always written; other backends are refused by name",
    ("Visualizer", "name"): "the work dir has the name",
    ("randomness", "deterministic"): "a run repeats bit for bit on the same machine anyway",
    ("randomness", "diff_rank_seed"): "every rank has random numbers of its own",
}

# top-level names that mean something to a run
VARIABLES: dict[str, str] = {
    "model": "part of the sentence",
    "tokenizer": "part of the sentence",
    "train_dataloader": "part of the sentence",
    "optim_wrapper": "part of the sentence",
    "param_scheduler": "part of the sentence",
    "train_cfg": "part of the sentence",
    "custom_hooks": "part of the sentence",
    "default_hooks": "part of the sentence",
    "visualizer": "part of the sentence",
    "load_from": "part of the sentence",
    "resume": "part of the sentence",
    "randomness": "part of the sentence",
    "work_dir": "part of the sentence",
    "sequence_parallel_size": "must be 1 in one process",
    "env_cfg": "harmless: processes and back ends are chosen by the engine",
    "log_level": "harmless: XTUNER_DEBUG=1 shows more",
    "log_processor": "harmless: logs are iteration by iteration",
    "val_cfg": "harmless: there is nothing to validate on",
    "test_cfg": "harmless: belongs to the test command",
    "launcher": "harmless: the command line decides",
    "experiment_name": "harmless: the work dir has the name",
    "default_scope": "harmless: words are known here",
}

OPTIMISERS: dict[str, str] = {
    "AdamW": "adamw",
    "SGD": "sgd",
    "AdamW8bit": "adamw_8bit",
    "PagedAdamW": "paged_adamw",
    "PagedAdamW32bit": "paged_adamw",
    "PagedAdamW8bit": "paged_adamw_8bit",
}

# map function -> row format
MAP_FUNCTIONS: dict[str, str] = {
    "alpaca_map_fn": "alpaca",
    "alpaca_zh_map_fn": "alpaca_zh",
    "arxiv_map_fn": "arxiv",
    "code_alpaca_map_fn": "code_alpaca",
    "colors_map_fn": "colors",
    "crime_kg_assitant_map_fn": "crime_kg_assitan",
    "default_map_fn": "default",
    "law_reference_map_fn": "law_reference",
    "llava_image_only_map_fn": "llava_image_only",
    "llava_map_fn": "llava",
    "medical_map_fn": "medical",
    "msagent_react_map_fn": "msagent_react",
    "oasst1_map_fn": "oasst1",
    "openai_map_fn": "openai",
    "openorca_map_fn": "openorca",
    "pretrain_map_fn": "pretrain",
    "sql_map_fn": "sql",
    "stack_exchange_map_fn": "stack_exchange",
    "tiny_codes_map_fn": "tiny_codes",
    "wizardlm_map_fn": "wizardlm",
}


HOMES = {**WORDS, **{word: home for word, (home, _) in LATER.items()}}


def dotted(value: Any) -> str | None:
    """Return the dotted name that a value is: an imported name, or the same name as a text in a dumped config."""
    if isinstance(value, Ref):
        return value.path
    return value if isinstance(value, str) else None


def word_of(value: Any) -> str | None:
    """Return the known word that a `type` names, or None: a word of somebody else."""
    path = dotted(value)
    if path is None:
        return None
    parts = path.split(".")
    for length in (1, 2):
        word = ".".join(parts[-length:])
        if word in HOMES and (len(parts) == length or parts[0] == HOMES[word]):
            return word
    if path.startswith("transformers.") and parts[-2].endswith("ForCausalLM") and parts[-1] == "from_pretrained":
        return "AutoModelForCausalLM.from_pretrained"
    return None


def name_in(value: Any, table: str) -> str | None:
    """Return `x` of `PROMPT_TEMPLATE.x` or `SYSTEM_TEMPLATE.x`, imported or as a text in a dumped config."""
    path = dotted(value)
    parts = path.split(".") if path else []
    return parts[-1] if len(parts) >= 2 and parts[-2] == table else None
