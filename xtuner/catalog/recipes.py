"""What is done with a model: method, data, length. A recipe says only what differs from `page.Page`."""

from collections.abc import Mapping
from typing import Any

from xtuner.catalog.method import FULL
from xtuner.catalog.preference_recipes import PREFERENCE_RECIPES
from xtuner.catalog.vision_recipes import VISION_RECIPES

CUSTOM: dict[str, Any] = {"parallel": None, "epochs": 1}
"""On files of the user."""

INTERN_LOADER: dict[str, Any] = {
    "varlen": True,
    "sampler": "intern",
    "info": {"is_intern_repo_dataset": "True"},
    "hooks_from": "xtuner.engine",
    "throughput": "after",
    "log_interval": 1,
    "log_window": True,
    "mean_pattern": True,
}
INTERN: dict[str, Any] = {
    **FULL,
    **INTERN_LOADER,
    "template": "internlm2_chat",
    "max_length": 32768,
    "accumulate": 1,
    "workers": 4,
    "epochs": 1,
    "lr": 4e-5,
    "betas": (0.9, 0.95),
    "weight_decay": 0.01,
    "half": False,
    "warmup": 0.025,
    "warmup_variable": "warm_up_ratio",
    "warmup_start": "1 / 40",
    "linear": "'LinearLR'",
    "eta_min": "lr * 0.15",
}
"""The way the InternLM team trains: long packs, its own sampler."""

SPEED: dict[str, Any] = {
    **FULL,
    "sampler": "parallel",
    "data": ("alpaca", "alpaca_zh"),
    "accumulate": 1,
    "workers": 4,
    "save_steps": -1,
    "save_last": False,
    "info": None,
    "log_interval": 1,
    "log_variable": True,
    "log_window": True,
    "num_questions_iters": 50,
    "questions": None,
    "throughput": "after",
}
"""Measures tokens per second, one sequence over `parallel` cards."""

ENZH = ("alpaca", "alpaca_zh")
ENZH_OASST1 = ("alpaca", "alpaca_zh", "oasst1")
ALPACA: dict[str, Any] = {"system": "alpaca"}
MOSS: dict[str, Any] = {
    "data": ("moss", "moss_plugins"),
    "template": "moss_sft",
    "epochs": 1,
    "system": "moss_sft",
    "question_options": {"stop_words": "['<eoc>']"},
}
"""Conversations in which tools are called: a command ends at <eoc>, and the tool answers."""

BOOKS: dict[str, Any] = {
    **FULL,
    "data": ("books",),
    "dtype": "bfloat16",
    "attention": "flash_attention_2",
    "max_length": 65536,
    "max_positions": 65536,
    "pack": False,
    "accumulate": 8,
    "epochs": 1,
    "half": False,
    "warmup": 0.05,
    "warmup_start": "1 / 40",
    "eta_min": "lr * 0.15",
    "save_total": 1,
    "save_optimizer": False,
    "log_interval": 1,
    "log_window": True,
    "mean_pattern": True,
    "num_questions_iters": None,
    "questions": None,
    "throughput": "after",
}
"""Whole books, already tokens, to stretch a model to 64K tokens."""

TRAINER: dict[str, Any] = {"kind": "trainer", "parallel": None, "varlen": None}

GPU8: dict[str, Any] = {"batch_size": 8, "accumulate": 1, "workers": 2}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "qlora_alpaca_e3": {**ALPACA, "data": ("alpaca",)},
    "qlora_alpaca_e3_2k_gpu8": {**ALPACA, "data": ("alpaca",)},
    "qlora_alpaca_e3_16k_2gpus": {**ALPACA, "data": ("alpaca",)},
    "qlora_alpaca_zh_e3": {**ALPACA, "data": ("alpaca_zh",)},
    "qlora_alpaca_enzh_e3": {**ALPACA, "data": ENZH},
    "qlora_alpaca_enzh_oasst1_e3": {**ALPACA, "data": ENZH_OASST1},
    "qlora_oasst1_e3": {"data": ("oasst1",)},
    "qlora_oasst1_512_e3": {"data": ("oasst1",), "max_length": 512, "pack": False},
    "qlora_arxiv_gentitle_e3": {"data": ("arxiv",), "system": "arxiv_gentile", "questions": "arxiv"},
    "qlora_code_alpaca_e3": {
        "data": ("code_alpaca",),
        "system": "coder",
        "questions": "code",
        "num_questions_iters": 100,
    },
    "qlora_colorist_e5": {
        "data": ("colors",),
        "system": "colorist",
        "questions": "colour",
        "epochs": 5,
        "num_questions_iters": 200,
    },
    "qlora_lawyer_e3": {"data": ("crime", "law"), "system": "lawyer", "questions": "law"},
    "qlora_medical_e1": {"data": ("medical",), "system": "medical", "questions": "medicine", "epochs": 1},
    "qlora_open_platypus_e3": {**ALPACA, "data": ("open_platypus",)},
    "qlora_open_platypus_e1": {**ALPACA, "data": ("open_platypus",), "epochs": 1},
    "qlora_openorca_e1": {"data": ("openorca",), "epochs": 1, "num_questions_iters": 5000},
    "qlora_sql_e3": {"data": ("sql",), "system": "sql", "questions": "sql"},
    "qlora_tiny_codes_e1": {"data": ("tiny_codes",), "system": "coder", "questions": "code", "epochs": 1},
    "qlora_json_e3": {"data": ("json",)},
    "qlora_msagent_react_e3_gpu8": {
        **GPU8,
        "data": ("msagent",),
        "pack": False,
        "system": "agent",
        "questions": "search",
    },
    "qlora_custom_sft_e1": {**CUSTOM, "data": ("custom_sft",)},
    "qlora_stack_exchange_example": {
        "data": ("stack_exchange",),
        "epochs": 1,
        "num_questions_iters": 200,
        "questions": "code",
    },
    "lora_alpaca_zh_e3": {**ALPACA, "data": ("alpaca_zh",), "bits": None},
    "int8_lora_open_platypus_e1": {**ALPACA, "data": ("open_platypus",), "bits": 8, "epochs": 1},
    "full_alpaca_e3": {**FULL, **ALPACA, "data": ("alpaca",)},
    "full_alpaca_zh_e3": {**FULL, **ALPACA, "data": ("alpaca_zh",)},
    "full_alpaca_enzh_e3": {**FULL, **ALPACA, "data": ENZH},
    "full_alpaca_enzh_oasst1_e3": {**FULL, **ALPACA, "data": ENZH_OASST1},
    "full_oasst1_e3": {**FULL, "data": ("oasst1",)},
    "full_wizardlm_e1": {**FULL, "data": ("wizardlm",), "epochs": 1, "throughput": "after"},
    "full_custom_pretrain_e1": {
        **FULL,
        **CUSTOM,
        "data": ("custom_pretrain",),
        "template": None,
        "shuffle_before_pack": False,
        "questions": "pretrain",
    },
    "full_finetune_custom_dataset_e1": {**INTERN, "data": ("custom",)},
    "full_finetune_custom_dataset_e1_sequence_parallel_4": {**INTERN, "data": ("custom",), "parallel": 4},
    "w_internevo_dataset": {**INTERN, "data": ("tokenized",)},
    "w_tokenized_dataset": {**INTERN, "data": ("tokenized",)},
    "w_untokenized_dataset": {**INTERN, "data": ("untokenized",)},
    "full_alpaca_e3_32k_varlen": {**FULL, **ALPACA, "data": ("alpaca",), "max_length": 32768, "varlen": True},
    "full_finetune_custom_sft_e1": {
        **CUSTOM,
        **INTERN_LOADER,
        "data": ("custom_sft",),
        "max_length": 32768,
        "half": False,
    },
    "full_intern_repo_dataset_template": {
        **INTERN,
        "data": ("tokenized_template",),
        "template": "internlm_chat",
        "max_length": 8192,
        "accumulate": 4,
        "log_interval": 10,
        "log_by_epoch": None,
    },
    "full_pgbooks_400iters_sp1": BOOKS,
    "full_pgbooks_400iters_sp4": {**BOOKS, "parallel": 4},
    "qlora_moss_sft_all_e1": MOSS,
    "qlora_moss_sft_all_e2_gpu8": {**MOSS, **GPU8, "epochs": 2},
    "qlora_moss_sft_plugins_e1": {**MOSS, "data": ("moss_plugins",)},
    "qlora_oasst1_mmlu_e3": {"data": ("oasst1",), "mmlu": True},
    "qlora_oasst1_e3_hf": {**TRAINER, "data": ("oasst1",), "optimizer": "paged_adamw_32bit"},
    "qlora_open_platypus_e1_hf": {**TRAINER, "data": ("open_platypus",), "epochs": 1},
    "int8_lora_open_platypus_e1_hf": {**TRAINER, "data": ("open_platypus",), "bits": 8, "epochs": 1},
    "qlora_skypile_pretrain_e1": {
        "data": ("skypile",),
        "template": None,
        "epochs": 1,
        "system": None,
        "questions": "pretrain",
        "question_options": {"max_new_tokens": "100"},
    },
    "128k_sp32": {
        **FULL,
        **ALPACA,
        "data": ENZH,
        "dtype": "bfloat16",
        "attention": "flash_attention_2",
        "max_length": 128 * 1024,
        "parallel": 32,
        "sampler": "parallel",
        "accumulate": 1,
        "workers": 4,
        "max_iters": 16,
        "half": False,
        "warmup": 0.05,
        "warmup_start": None,
        "eta_min": "lr * 0.15",
        "save_total": 1,
        "log_interval": 1,
        "log_window": True,
        "mean_pattern": True,
        "num_questions_iters": 10,
        "question_options": {"max_new_tokens": "100"},
        "throughput": "before",
    },
    **PREFERENCE_RECIPES,
    **VISION_RECIPES,
    "full_alpaca_enzh_8k_sp1": {**SPEED, "max_length": 8 * 1024},
    "full_alpaca_enzh_32k_sp1": {**SPEED, "max_length": 32 * 1024},
    "full_alpaca_enzh_32k_sp2": {**SPEED, "max_length": 32 * 1024, "parallel": 2},
    "full_alpaca_enzh_32k_sp4": {**SPEED, "max_length": 32 * 1024, "parallel": 4},
    "full_alpaca_enzh_128k_sp8": {**SPEED, "max_length": 128 * 1024, "parallel": 8},
    "full_alpaca_enzh_256k_sp8": {**SPEED, "max_length": 256 * 1024, "parallel": 8},
    "full_alpaca_enzh_256k_sp16": {**SPEED, "max_length": 256 * 1024, "parallel": 16},
    "full_alpaca_enzh_1M_sp16": {**SPEED, "max_length": 1024 * 1024, "parallel": 16},
}
