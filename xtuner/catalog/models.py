"""Models of the recipe book: the checkpoint, its chat template, and the recipes that there are for it."""

from typing import Any

from xtuner.catalog.model_row import Model, row
from xtuner.catalog.vision_models import VISION_MODELS

ALPACAS = "qlora_alpaca_e3 qlora_alpaca_enzh_e3 qlora_alpaca_enzh_oasst1_e3 qlora_alpaca_zh_e3"
CHAT = f"{ALPACAS} qlora_code_alpaca_e3 qlora_lawyer_e3 qlora_oasst1_512_e3 qlora_oasst1_e3 qlora_open_platypus_e3"
MORE = "qlora_arxiv_gentitle_e3 qlora_colorist_e5 qlora_sql_e3"
BASE = f"{CHAT} {MORE}"
ALL = f"{BASE} qlora_medical_e1 qlora_openorca_e1 qlora_tiny_codes_e1"
INTERNLM2_CHAT = "qlora_alpaca_e3 qlora_code_alpaca_e3 qlora_lawyer_e3 qlora_oasst1_512_e3 qlora_oasst1_e3"
INTERNLM2 = f"{INTERNLM2_CHAT} {MORE}"
BOTH = "full_alpaca_e3 qlora_alpaca_e3"
PRETRAIN = "full_custom_pretrain_e1"
SFT = "qlora_custom_sft_e1"
DATASET = "full_finetune_custom_dataset_e1"
MSAGENT = "qlora_msagent_react_e3_gpu8"
MOSS = "qlora_moss_sft_all_e1 qlora_moss_sft_all_e2_gpu8 qlora_moss_sft_plugins_e1"
PREFERENCE = (
    "dpo_full dpo_full_varlenattn dpo_full_varlenattn_jsonl_dataset"
    " orpo_full orpo_full_varlenattn orpo_full_varlenattn_jsonl_dataset"
    " reward_full_ultrafeedback reward_full_varlenattn_ultrafeedback reward_full_varlenattn_jsonl_dataset"
    " reward_qlora_varlenattn_ultrafeedback"
)


GLM3: dict[str, Any] = {"tokenizer": {"encode_special_tokens": True}, "padding_side": "left"}
QWEN: dict[str, Any] = {"tokenizer": {"eos_token": "<|endoftext|>"}}
QWEN_CHAT: dict[str, Any] = {"tokenizer": {"eos_token": "<|im_end|>"}}
MINICPM: dict[str, Any] = {"tokenizer": {"eos_token": "</s>"}}
SMALL_LORA = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.05}
EXPERTS_LORA = {
    "r": 64,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3"],
}

# the schedule only falls; the experts of a layer lie in few large tensors
DEEPSEEK_V2: dict[str, Any] = {
    "llm": "DeepseekV2ForCausalLM",
    "data": ("alpaca_alone",),
    "accumulate": 1,
    "workers": 4,
    "lr": 1e-5,
    "warmup_start": None,
    "save_steps": 50,
    "save_variable": True,
    "log_interval": 1,
    "log_window": True,
    "questions": None,
    "throughput": "before",
    "further_hooks": ("HFCheckpointHook",),
}


def shards(num_experts: int) -> dict[str, str]:
    """Say how many experts lie in a tensor."""
    return {"moe_implementation": "'shard'", "expert_in_one_shard": str(num_experts)}


INTERNLM = (
    row(
        "internlm_7b",
        "internlm/internlm-7b",
        f"{ALL} {MSAGENT} {MOSS} qlora_json_e3 full_oasst1_e3 {BOTH}"
        " full_alpaca_zh_e3 full_alpaca_enzh_e3 full_alpaca_enzh_oasst1_e3 full_intern_repo_dataset_template"
        " qlora_oasst1_mmlu_e3 qlora_oasst1_e3_hf",
        bot_name="InternLM",
    ),
    row("internlm_chat_7b", "internlm/internlm-chat-7b", ALL, "internlm_chat"),
    row("internlm_20b", "internlm/internlm-20b", f"{BASE} {MSAGENT}"),
    row("internlm_chat_20b", "internlm/internlm-chat-20b", CHAT, "internlm_chat"),
    row("internlm2_1_8b", "internlm/internlm2-1_8b", f"{BOTH} {PRETRAIN}", parallel=True),
    row(
        "internlm2_7b",
        "internlm/internlm2-7b",
        f"{INTERNLM2} {PRETRAIN} {DATASET} {DATASET}_sequence_parallel_4 {MSAGENT} qlora_json_e3"
        " w_internevo_dataset w_tokenized_dataset w_untokenized_dataset",
        parallel=True,
    ),
    row("internlm2_20b", "internlm/internlm2-20b", f"{INTERNLM2} {PRETRAIN} {DATASET} {MSAGENT}", parallel=True),
    row("internlm2_chat_1_8b", "internlm/internlm2-chat-1_8b", f"{BOTH} {SFT}", "internlm2_chat", parallel=True),
    row(
        "internlm2_chat_7b",
        "internlm/internlm2-chat-7b",
        f"{INTERNLM2_CHAT} {SFT} {DATASET}",
        "internlm2_chat",
        parallel=True,
    ),
    row(
        "internlm2_chat_20b",
        "internlm/internlm2-chat-20b",
        f"{INTERNLM2_CHAT} {SFT} {DATASET}",
        "internlm2_chat",
        parallel=True,
    ),
    row("internlm2_chat_1_8b", "internlm/internlm2-chat-1_8b-sft", PREFERENCE, "internlm2_chat"),
    row("internlm2_chat_7b", "internlm/internlm2-chat-7b-sft", "dpo_qlora_varlenattn", "internlm2_chat"),
    # 0.1.23 names the 7B model and loads the one of 1.8B
    row(
        "internlm2_chat_7b",
        "internlm/internlm2-chat-1_8b-sft",
        "orpo_qlora_varlenattn_ultrafeedback_e5",
        "internlm2_chat",
    ),
    row(
        "internlm2_5_chat_7b",
        "internlm/internlm2_5-7b-chat",
        f"qlora_alpaca_e3 qlora_oasst1_e3 {DATASET}",
        "internlm2_chat",
        parallel=True,
    ),
)

BAICHUAN = (
    row("baichuan_7b", "baichuan-inc/Baichuan-7B", f"{ALL} {MOSS} {SFT}", bot_name="Baichuan"),
    row("baichuan_13b_base", "baichuan-inc/Baichuan-13B-Base", f"{ALL} {MOSS}", bot_name="Baichuan"),
    row("baichuan_13b_chat", "baichuan-inc/Baichuan-13B-Chat", f"{ALL} {SFT}", "baichuan_chat"),
    row("baichuan2_7b_base", "baichuan-inc/Baichuan2-7B-Base", f"{BASE} {PRETRAIN}"),
    row("baichuan2_7b_chat", "baichuan-inc/Baichuan2-7B-Chat", f"{CHAT} {SFT}", "baichuan2_chat"),
    row("baichuan2_13b_base", "baichuan-inc/Baichuan2-13B-Base", f"{BASE} {PRETRAIN}"),
    row("baichuan2_13b_chat", "baichuan-inc/Baichuan2-13B-Chat", f"{CHAT} {SFT}", "baichuan2_chat"),
)

CHATGLM = (
    row("chatglm2_6b", "THUDM/chatglm2-6b", f"{ALL} {PRETRAIN} {SFT}", "chatglm2", padding_side="left"),
    row("chatglm3_6b", "THUDM/chatglm3-6b", f"{ALL} {PRETRAIN} {SFT}", "chatglm3", **GLM3),
    row("chatglm3_6b_base", "THUDM/chatglm3-6b-base", ALL, "chatglm3", **GLM3),
)

LLAMA = (
    row("llama_7b", "huggyllama/llama-7b", f"{ALL} {MOSS}", bot_name="Llama"),
    row(
        "llama2_7b",
        "meta-llama/Llama-2-7b-hf",
        f"{ALL} {PRETRAIN} {MSAGENT} {MOSS} full_wizardlm_e1 full_pgbooks_400iters_sp1 full_pgbooks_400iters_sp4"
        " full_alpaca_enzh_8k_sp1 full_alpaca_enzh_32k_sp1 full_alpaca_enzh_128k_sp8 full_alpaca_enzh_256k_sp8"
        " full_alpaca_enzh_1M_sp16",
        "llama2_chat",
        parallel=True,
        bot_name="Llama2",
    ),
    row("llama2_7b_chat", "meta-llama/Llama-2-7b-chat-hf", f"{ALL} {SFT}", "llama2_chat", parallel=True),
    row(
        "llama2_70b",
        "meta-llama/Llama-2-70b-hf",
        f"{PRETRAIN} {SFT} full_wizardlm_e1 int8_lora_open_platypus_e1 int8_lora_open_platypus_e1_hf"
        " qlora_open_platypus_e1_hf"
        " qlora_open_platypus_e1 full_alpaca_enzh_8k_sp1 full_alpaca_enzh_32k_sp4 full_alpaca_enzh_128k_sp8"
        " full_alpaca_enzh_256k_sp16",
        "llama2_chat",
        parallel=True,
    ),
    row("llama3_8b", "meta-llama/Meta-Llama-3-8B", "full_alpaca_e3", "llama3_chat", parallel=True),
    row(
        "llama3_70b_instruct",
        "meta-llama/Meta-Llama-3-70B-Instruct",
        "qlora_alpaca_e3_2k_gpu8",
        "llama3_chat",
        parallel=True,
    ),
    row(
        "llama3_8b_instruct",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        f"{BOTH} dpo_qlora_varlenattn orpo_qlora_varlenattn_ultrafeedback_e5 reward_full_varlenattn_ultrafeedback",
        "llama3_chat",
        parallel=True,
    ),
    row("yi_6b", "01-ai/Yi-6B", f"{PRETRAIN} {SFT} qlora_alpaca_enzh_e3", parallel=True),
    row("yi_34b", "01-ai/Yi-34B", f"{PRETRAIN} {SFT} qlora_alpaca_enzh_e3", parallel=True),
    row(
        "yi_34b_200k",
        "01-ai/Yi-34B-200K",
        "full_alpaca_enzh_8k_sp1 full_alpaca_enzh_32k_sp2 full_alpaca_enzh_128k_sp8 full_alpaca_enzh_256k_sp8",
        "llama2_chat",
        parallel=True,
    ),
    row("zephyr_7b_beta", "HuggingFaceH4/zephyr-7b-beta", f"{PRETRAIN} {SFT} qlora_alpaca_e3", "zephyr", parallel=True),
    row(
        "mistral_7b",
        "mistralai/Mistral-7B-v0.1",
        f"{PRETRAIN} {DATASET} full_finetune_custom_sft_e1 qlora_skypile_pretrain_e1"
        " w_tokenized_dataset w_untokenized_dataset",
        "mistral",
        parallel=True,
    ),
)

QWEN1 = (
    row("qwen_1_8b", "Qwen/Qwen-1_8B", f"{ALPACAS} qlora_code_alpaca_e3 {PRETRAIN}", parallel=True, **QWEN),
    row(
        "qwen_1_8b_chat",
        "Qwen/Qwen-1_8B-Chat",
        f"{ALPACAS} qlora_code_alpaca_e3 {SFT}",
        "qwen_chat",
        parallel=True,
        **QWEN_CHAT,
    ),
    row("qwen_7b", "Qwen/Qwen-7B", f"{ALL} {MOSS} {PRETRAIN}", parallel=True, bot_name="Qwen", **QWEN),
    row("qwen_7b_chat", "Qwen/Qwen-7B-Chat", f"{ALL} {SFT}", "qwen_chat", parallel=True, **QWEN_CHAT),
    row("qwen_72b", "Qwen/Qwen-72B", f"{ALPACAS} qlora_code_alpaca_e3 {PRETRAIN} {SFT}", parallel=True, **QWEN),
)

SIZES = ("0.5B", "1.8B", "4B", "7B", "14B", "72B")
QWEN1_5 = (
    row("qwen1_5_110b", "Qwen/Qwen1.5-110B", BOTH, parallel=True),
    row("qwen1_5_110b_chat", "Qwen/Qwen1.5-110B-Chat", f"{BOTH} qlora_alpaca_e3_16k_2gpus", "qwen_chat", parallel=True),
    row(
        "qwen1_5_moe_a2_7_b_chat",
        "Qwen/Qwen1.5-MoE-A2.7B-Chat",
        "full_alpaca_e3",
        "qwen_chat",
        parallel=True,
        data=("alpaca", "alpaca_zh"),
        max_length=32768,
        shuffle_before_pack=False,
        accumulate=1,
        log_interval=1,
        log_window=True,
        num_questions_iters=50,
        throughput="after",
    ),
    *(
        row(f"qwen1_5_{size.lower().replace('.', '_')}", f"Qwen/Qwen1.5-{size}", f"{BOTH} {PRETRAIN}", parallel=True)
        for size in SIZES
    ),
    *(
        row(
            f"qwen1_5_{size.lower().replace('.', '_')}_chat",
            f"Qwen/Qwen1.5-{size}-Chat",
            f"{BOTH} {SFT}",
            "qwen_chat",
            parallel=True,
        )
        for size in SIZES
    ),
)

OTHERS = (
    row("gemma_2b", "google/gemma-2b", f"{BOTH} {PRETRAIN} {SFT}"),
    row("gemma_2b_it", "google/gemma-2b-it", f"{BOTH} {SFT}", "gemma"),
    row("gemma_7b", "google/gemma-7b", f"{BOTH} {PRETRAIN} {SFT}"),
    row("gemma_7b_it", "google/gemma-7b-it", f"{BOTH} {SFT}", "gemma"),
    row(
        "phi3_mini_4k_instruct",
        "microsoft/Phi-3-mini-4k-instruct",
        BOTH,
        "phi3_chat",
        parallel=True,
        max_length=4 * 1024,
    ),
    row(
        "phi3_mini_128k_instruct",
        "microsoft/Phi-3-mini-128k-instruct",
        BOTH,
        "phi3_chat",
        parallel=True,
        max_length=128 * 1024,
    ),
    row(
        "mixtral_8x7b",
        "mistralai/Mixtral-8x7B-v0.1",
        f"{PRETRAIN} full_oasst1_e3 qlora_oasst1_e3",
        "mixtral",
        parallel=True,
        lora=EXPERTS_LORA,
    ),
    row(
        "mixtral_8x7b_instruct",
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        f"{SFT} full_oasst1_e3 qlora_oasst1_e3",
        "mixtral",
        parallel=True,
        lora=EXPERTS_LORA,
    ),
    row(
        "deepseek_coder_6_7b_base",
        "deepseek-ai/deepseek-coder-6.7b-base",
        "qlora_code_alpaca_e3",
        "deepseek_coder",
        parallel=True,
    ),
    row(
        "deepseekcoder_6_7b_instruct",
        "deepseek-ai/deepseek-coder-6.7b-instruct",
        f"{SFT} qlora_code_alpaca_e3",
        "deepseek_coder",
        parallel=True,
    ),
    row(
        "deepseek_moe_16b_base",
        "deepseek-ai/deepseek-moe-16b-base",
        f"{PRETRAIN} full_oasst1_e3 qlora_oasst1_e3",
        "deepseek_moe",
        parallel=True,
        lora=SMALL_LORA,
    ),
    row(
        "deepseek_moe_16b_chat",
        "deepseek-ai/deepseek-moe-16b-chat",
        f"{SFT} full_oasst1_e3 qlora_oasst1_e3",
        "deepseek_moe",
        parallel=True,
        lora=SMALL_LORA,
    ),
    row(
        "deepseek_v2_chat",
        "deepseek-ai/DeepSeek-V2-Chat",
        "full_alpaca_e3",
        "deepseek_v2",
        parallel=True,
        **{**DEEPSEEK_V2, "llm_options": shards(10), "num_questions_iters": 25},
    ),
    row(
        "deepseek_v2_lite_chat",
        "deepseek-ai/DeepSeek-V2-Lite-Chat",
        "full_alpaca_e3 full_alpaca_e3_32k_varlen",
        "deepseek_v2",
        parallel=True,
        **{**DEEPSEEK_V2, "llm_options": shards(8), "num_questions_iters": 50},
    ),
    row("cohere_100b", "CohereForAI/c4ai-command-r-plus", "128k_sp32", "cohere_chat"),
    row(
        "minicpm_1b",
        "openbmb/MiniCPM-1B-sft-bf16",
        f"{PRETRAIN} dpo_qlora full_alpaca_zh_e3 lora_alpaca_zh_e3 qlora_alpaca_zh_e3 qlora_alpaca_enzh_e3",
        "minicpm",
        parallel=True,
        **MINICPM,
    ),
    row(
        "minicpm_2b",
        "openbmb/MiniCPM-2B-sft-bf16",
        f"{PRETRAIN} dpo_qlora full_alpaca_zh_e3 lora_alpaca_zh_e3 qlora_alpaca_zh_e3 qlora_alpaca_enzh_e3",
        "minicpm",
        parallel=True,
        **MINICPM,
    ),
    row("starcoder", "bigcode/starcoder", f"{PRETRAIN} {SFT} qlora_stack_exchange_example"),
)

MODELS: tuple[Model, ...] = (
    *INTERNLM,
    *BAICHUAN,
    *CHATGLM,
    *LLAMA,
    *QWEN1,
    *QWEN1_5,
    *OTHERS,
    *VISION_MODELS,
)
