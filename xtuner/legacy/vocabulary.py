"""The words of 0.1.x configs: where each comes from, and what it is called here."""

from typing import Any

from xtuner.config.ref import Ref

# short word -> package that it is imported from (any module of it: 0.1.x moved words about between versions)
WORDS: dict[str, str] = {
    "SupervisedFinetune": "xtuner",
    "DPO": "xtuner",
    "ORPO": "xtuner",
    "RewardModel": "xtuner",
    "LLaVAModel": "xtuner",
    "InternVL_V1_5": "xtuner",
    "AutoModelForCausalLM.from_pretrained": "transformers",
    "MistralForCausalLM.from_pretrained": "transformers",
    "DeepseekV2ForCausalLM.from_pretrained": "xtuner",
    "CLIPVisionModel.from_pretrained": "transformers",
    "CLIPImageProcessor.from_pretrained": "transformers",
    "AutoTokenizer.from_pretrained": "transformers",
    "LlamaTokenizer.from_pretrained": "transformers",
    "BitsAndBytesConfig": "transformers",
    "LoraConfig": "peft",
    "process_hf_dataset": "xtuner",
    "ConcatDataset": "xtuner",
    "LLaVADataset": "xtuner",
    "RefCOCOJsonDataset": "xtuner",
    "InvRefCOCOJsonDataset": "xtuner",
    "InternVL_V1_5_Dataset": "xtuner",
    "MOSSSFTDataset": "xtuner",
    "process_ms_dataset": "xtuner",
    "build_preference_dataset": "xtuner",
    "build_packed_dataset": "xtuner",
    "load_intern_repo_tokenized_dataset": "xtuner",
    "load_intern_repo_untokenized_dataset": "xtuner",
    "load_jsonl_dataset": "xtuner",
    "load_json_file": "xtuner",
    "load_dataset": "datasets",
    "load_from_disk": "datasets",
    "MsDataset.load": "modelscope",
    "template_map_fn_factory": "xtuner",
    "template_map_fn": "xtuner",
    "default_collate_fn": "xtuner",
    "preference_collate_fn": "xtuner",
    "mmlu_collate_fn": "xtuner",
    "MMLUMetric": "xtuner",
    "DefaultSampler": "mmengine",
    "InfiniteSampler": "mmengine",
    "LengthGroupedSampler": "xtuner",
    "SequenceParallelSampler": "xtuner",
    "InternRepoSampler": "xtuner",
    "BatchSampler": "torch",
    "AmpOptimWrapper": "mmengine",
    "OptimWrapper": "mmengine",
    "DeepSpeedOptimWrapper": "mmengine",
    "DeepSpeedStrategy": "xtuner",
    "AdamW": "torch",
    "Adam": "torch",
    "SGD": "torch",
    "DeepSpeedCPUAdam": "deepspeed",
    "FusedAdam": "deepspeed",
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
    "EMAHook": "mmengine",
    "EarlyStoppingHook": "mmengine",
    "EmptyCacheHook": "mmengine",
    "SyncBuffersHook": "mmengine",
    "MemoryProfilerHook": "mmengine",
    "ProfilerHook": "mmengine",
    "NPUProfilerHook": "mmengine",
    "NaiveVisualizationHook": "mmengine",
    "DatasetInfoHook": "xtuner",
    "EvaluateChatHook": "xtuner",
    "ThroughputHook": "xtuner",
    "VarlenAttnArgsToMessageHubHook": "xtuner",
    "HFCheckpointHook": "xtuner",
    "Visualizer": "mmengine",
    "LocalVisBackend": "mmengine",
    "TensorboardVisBackend": "mmengine",
    "WandbVisBackend": "mmengine",
    "Trainer": "transformers",
    "TrainingArguments": "transformers",
}

LIBRARIES = ("transformers.", "xtuner.model.transformers_models.")
"""Where classes of models and tokenizers come from."""

# how the name of a class of these libraries ends -> the word that stands for all of its kind
ENDINGS: dict[str, str] = {
    "ForCausalLM": "AutoModelForCausalLM.from_pretrained",
    "VisionModel": "CLIPVisionModel.from_pretrained",
    "ImageProcessor": "CLIPImageProcessor.from_pretrained",
    "Tokenizer": "AutoTokenizer.from_pretrained",
    "TokenizerFast": "AutoTokenizer.from_pretrained",
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
    "sequence_parallel_size": "part of the sentence",
    "strategy": "part of the sentence, put there by --deepspeed",
    "val_dataloader": "part of the sentence",
    "val_evaluator": "part of the sentence",
    "test_dataloader": "belongs to the test command",
    "test_evaluator": "belongs to the test command",
    "framework": "part of the sentence",
    "trainer": "harmless: there is one engine",
    "runner_type": "harmless: there is one engine",
    "env_cfg": "harmless: processes and back ends are chosen by the engine",
    "log_level": "harmless: XTUNER_DEBUG=1 shows more",
    "log_processor": "harmless: logs are iteration by iteration",
    "val_cfg": "harmless: the engine knows how to validate",
    "test_cfg": "harmless: belongs to the test command",
    "launcher": "harmless: the command line decides",
    "experiment_name": "harmless: the work dir has the name",
    "default_scope": "harmless: words are known here",
}

OPTIMISERS: dict[str, str] = {
    "AdamW": "adamw",
    "Adam": "adamw",
    "DeepSpeedCPUAdam": "adamw",
    "FusedAdam": "adamw",
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
    "intel_orca_dpo_map_fn": "intel_orca_dpo",
    "medical_map_fn": "medical",
    "msagent_react_map_fn": "msagent_react",
    "oasst1_map_fn": "oasst1",
    "openai_map_fn": "openai",
    "openorca_map_fn": "openorca",
    "orpo_dpo_mix_40k_map_fn": "orpo_dpo_mix_40k",
    "pretrain_map_fn": "pretrain",
    "sql_map_fn": "sql",
    "stack_exchange_map_fn": "stack_exchange",
    "tiny_codes_map_fn": "tiny_codes",
    "wizardlm_map_fn": "wizardlm",
}


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
        if word in WORDS and (len(parts) == length or parts[0] == WORDS[word]):
            return word
    if len(parts) > 2 and parts[-1] == "from_pretrained" and path.startswith(LIBRARIES):
        for ending, word in ENDINGS.items():
            if parts[-2].endswith(ending):
                return word
    return None


def name_in(value: Any, table: str) -> str | None:
    """Return `x` of `PROMPT_TEMPLATE.x` or `SYSTEM_TEMPLATE.x`, imported or as a text in a dumped config."""
    path = dotted(value)
    parts = path.split(".") if path else []
    return parts[-1] if len(parts) >= 2 and parts[-2] == table else None
