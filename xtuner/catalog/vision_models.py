"""Models of the recipe book that see pictures: LLaVA on several language models, and InternVL."""

from xtuner.catalog.model_row import Model, row

PRETRAIN = "clip_vit_large_p14_336_e1_gpu8_pretrain"
PRETRAIN_FULL = f"{PRETRAIN}=pretrain"
SHAREGPT4V = "clip_vit_large_p14_336_e1_gpu8_sharegpt4v_pretrain"
QLORA = "qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune"
FINETUNE = "clip_vit_large_p14_336_e1_gpu8_finetune"
FULL = "full_clip_vit_large_p14_336_e1_gpu8_finetune"
OFFICIAL = "pretrain finetune=llava_finetune finetune_lora"

LLAVA = (
    row("llava_internlm_chat_7b", "internlm/internlm-chat-7b", f"{PRETRAIN} {QLORA}", "internlm_chat"),
    row("llava_internlm2_chat_1_8b", "internlm/internlm2-chat-1_8b", f"{PRETRAIN} {QLORA}", "internlm2_chat"),
    row("llava_internlm2_chat_7b", "internlm/internlm2-chat-7b", f"{PRETRAIN} {QLORA} {FINETUNE}", "internlm2_chat"),
    row("llava_internlm2_chat_20b", "internlm/internlm2-chat-20b", f"{PRETRAIN} {QLORA} {FINETUNE}", "internlm2_chat"),
    row("llava_vicuna_7b_v15", "lmsys/vicuna-7b-v1.5", f"{PRETRAIN} {QLORA} {QLORA}_refcoco", "vicuna"),
    row("llava_vicuna_13b_v15", "lmsys/vicuna-13b-v1.5", f"{PRETRAIN} {QLORA}", "vicuna"),
    row("llava_v15_7b", "lmsys/vicuna-7b-v1.5", OFFICIAL, "vicuna"),
    row("llava_v15_13b", "lmsys/vicuna-13b-v1.5", OFFICIAL, "vicuna"),
    row(
        "llava_llama3_8b_instruct",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        f"{PRETRAIN_FULL} {SHAREGPT4V} {FULL} quant_clip_vit_large_p14_336_e1_gpu1_pretrain"
        " full_clip_vit_large_p14_336_lora_e1_gpu8_finetune full_clip_vit_large_p14_336_lora_e1_gpu8_internvl_finetune"
        " qlora_clip_vit_large_p14_336_e1_gpu1_finetune",
        "llama3_chat",
    ),
    # 0.1.23 names the 70B model and loads the one of 8B
    row(
        "llava_llama3_70b_instruct",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "quant_clip_vit_large_p14_336_e1_gpu8_pretrain",
        "llama3_chat",
    ),
    row(
        "llava_phi3_mini_4k_instruct",
        "microsoft/Phi-3-mini-4k-instruct",
        f"{PRETRAIN_FULL} {SHAREGPT4V} {FULL} full_clip_vit_large_p14_336_full_e2_gpu8_internvl_finetune",
        "phi3_chat",
    ),
)

INTERNVL = tuple(
    row(f"internvl_{key}", f"OpenGVLab/{path}", "finetune lora_finetune qlora_finetune", template)
    for key, path, template in (
        ("v1_5_internlm2_2b", "Mini-InternVL-Chat-2B-V1-5", "internlm2_chat"),
        ("v1_5_phi3_4b", "Mini-InternVL-Chat-4B-V1-5", "phi3_chat"),
        ("v2_internlm2_2b", "InternVL2-2B", "internlm2_chat"),
        ("v2_internlm2_5_8b", "InternVL2-8B", "internlm2_chat"),
        ("v2_internlm2_26b", "InternVL2-26B", "internlm2_chat"),
        ("v2_phi3_4b", "InternVL2-4B", "phi3_chat"),
    )
)
INTERNVL_V1_5 = row(
    "internvl_v1_5_internlm2_26b",
    "OpenGVLab/InternVL-Chat-V1-5",
    "finetune lora_finetune qlora_finetune",
    "internlm2_chat",
    max_length=4096,
    weight_decay=0.01,
)

VISION_MODELS: tuple[Model, ...] = (*LLAVA, *INTERNVL, INTERNVL_V1_5)
