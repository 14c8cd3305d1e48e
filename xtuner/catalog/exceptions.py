"""What single configs of the recipe book say that their rows do not."""

from collections.abc import Mapping
from typing import Any

INTERNLM_FULL: dict[str, Any] = {"template": "internlm_chat", "throughput": "after"}
LLAMA2_70B_LORA: dict[str, Any] = {
    "lr": 3e-4,
    "lora": {
        "r": 64,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "target_modules": ["gate_proj", "down_proj", "up_proj"],
    },
}
LLAMA2_70B_INT8: dict[str, Any] = {
    **LLAMA2_70B_LORA,
    "lora": {**LLAMA2_70B_LORA["lora"], "r": 16, "lora_dropout": 0.05},
}
FLASH: dict[str, Any] = {"dtype": "bfloat16", "attention": "flash_attention_2"}
LARGE_FULL = {"batch_size": 1, "accumulate": 8}
LARGE_LORA = {"batch_size": 2, "accumulate": 4}
STARCODER: dict[str, Any] = {
    "lr": 1e-4,
    "weight_decay": 0.05,
    "max_dataset_length": 20000,
    "num_questions_iters": 200,
    "lora": {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": ["c_proj", "c_attn", "q_attn"],
    },
}
QWEN_110B_FULL: dict[str, Any] = {"accumulate": 1, "workers": 4, "lr": 1e-5, "throughput": "after"}
QWEN_110B_QLORA: dict[str, Any] = {"accumulate": 1, "lr": 1e-4, "quant_storage": True, "throughput": "before"}

EXCEPTIONS: Mapping[str, Mapping[str, Any]] = {
    "deepseekcoder_6_7b_instruct_qlora_custom_sft_e1": {"num_questions_iters": 100},
    "internlm2_5_chat_7b_qlora_alpaca_e3": {"accumulate": 1},
    "internlm2_7b_w_internevo_dataset": {"parallel": None},
    "internlm_7b_full_alpaca_e3": INTERNLM_FULL,
    "internlm_7b_full_alpaca_enzh_e3": INTERNLM_FULL,
    "internlm_7b_full_alpaca_enzh_oasst1_e3": INTERNLM_FULL,
    "internlm_7b_full_alpaca_zh_e3": INTERNLM_FULL,
    "internlm_7b_full_intern_repo_dataset_template": {"path": "/path/to/your/base/model"},
    "internlm_7b_full_oasst1_e3": INTERNLM_FULL,
    "internvl_v1_5_internlm2_26b_finetune": LARGE_FULL,
    "internvl_v1_5_internlm2_26b_lora_finetune": LARGE_LORA,
    "internvl_v1_5_internlm2_26b_qlora_finetune": LARGE_LORA,
    "internvl_v2_internlm2_26b_finetune": LARGE_FULL,
    "internvl_v2_internlm2_26b_lora_finetune": LARGE_LORA,
    "internvl_v2_internlm2_26b_qlora_finetune": LARGE_LORA,
    "llama2_70b_full_wizardlm_e1": {"accumulate": 4, "epochs": 3, "half": False},
    "llama2_70b_int8_lora_open_platypus_e1": LLAMA2_70B_INT8,
    "llama2_70b_int8_lora_open_platypus_e1_hf": LLAMA2_70B_INT8,
    "llama2_70b_qlora_custom_sft_e1": LLAMA2_70B_LORA,
    "llama2_70b_qlora_open_platypus_e1": LLAMA2_70B_LORA,
    "llama2_70b_qlora_open_platypus_e1_hf": LLAMA2_70B_LORA,
    "llama2_7b_full_alpaca_enzh_128k_sp8": {"path": "meta-llama/Llama-2-7b"},
    "llama2_7b_full_alpaca_enzh_1M_sp16": {"path": "meta-llama/Llama-2-7b"},
    "llama2_7b_full_alpaca_enzh_256k_sp8": {"path": "meta-llama/Llama-2-7b"},
    "llama2_7b_full_alpaca_enzh_32k_sp1": {"path": "meta-llama/Llama-2-7b"},
    "llama2_7b_full_alpaca_enzh_8k_sp1": {"path": "meta-llama/Llama-2-7b"},
    "llama2_7b_full_wizardlm_e1": {"batch_size": 2, "num_questions_iters": 200},
    "llama2_7b_qlora_msagent_react_e3_gpu8": {"template": "default"},
    "llama3_70b_instruct_qlora_alpaca_e3_2k_gpu8": {
        "accumulate": 2,
        "workers": 4,
        "lr": 1e-4,
        "quant_storage": True,
        "num_questions_iters": 50,
    },
    "llama3_8b_instruct_reward_full_varlenattn_ultrafeedback": {"reward_token": 128002},
    "llava_internlm2_chat_20b_clip_vit_large_p14_336_e1_gpu8_finetune": {"batch_size": 4, "accumulate": 4},
    "llava_internlm2_chat_20b_qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune": {"batch_size": 8, "accumulate": 2},
    "minicpm_1b_full_alpaca_zh_e3": {"data": ("alpaca_zh_as_en",)},
    "minicpm_1b_full_custom_pretrain_e1": {"accumulate": 1},
    "minicpm_1b_dpo_qlora": {"tokenizer": {}},
    "minicpm_2b_dpo_qlora": {"tokenizer": {}},
    "minicpm_2b_full_alpaca_zh_e3": {"data": ("alpaca_zh_as_en",)},
    "mistral_7b_full_finetune_custom_dataset_e1": {**FLASH, "template": "mistral"},
    "mistral_7b_full_finetune_custom_sft_e1": FLASH,
    "mistral_7b_qlora_skypile_pretrain_e1": {
        "llm": "MistralForCausalLM",
        "tokenizer_type": "LlamaTokenizer",
        "lora": {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05},
    },
    "mistral_7b_w_tokenized_dataset": {**FLASH, "tokenizer_path": "/new/tokenizer/path", "workers": 0},
    "mistral_7b_w_untokenized_dataset": {
        **FLASH,
        "data": ("untokenized_template",),
        "template": "mistral",
        "workers": 0,
    },
    "mixtral_8x7b_full_oasst1_e3": {"throughput": "after"},
    "mixtral_8x7b_instruct_full_oasst1_e3": {"throughput": "after"},
    "qwen1_5_110b_chat_full_alpaca_e3": QWEN_110B_FULL,
    "qwen1_5_110b_chat_qlora_alpaca_e3": QWEN_110B_QLORA,
    "qwen1_5_110b_chat_qlora_alpaca_e3_16k_2gpus": {
        **QWEN_110B_QLORA,
        "max_length": 16 * 1024,
        "parallel": 2,
        "log_interval": 1,
        "log_window": True,
        "num_questions_iters": 50,
    },
    "qwen1_5_110b_full_alpaca_e3": QWEN_110B_FULL,
    "qwen1_5_110b_qlora_alpaca_e3": {**QWEN_110B_QLORA, "workers": 4},
    "starcoder_qlora_custom_sft_e1": STARCODER,
    "starcoder_qlora_stack_exchange_example": STARCODER,
}
