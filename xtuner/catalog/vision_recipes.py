"""What is done with models that see pictures. A recipe says only what differs from `page.LlavaPage` and its like."""

from collections.abc import Mapping
from typing import Any

from xtuner.catalog.method import FULL, WHOLE

LLAVA: dict[str, Any] = {
    "kind": "llava",
    "varlen": None,
    # a picture of 336 points in squares of 14 takes 576 tokens of the 2048
    "max_length": "int(2048 - (336 / 14) ** 2)",
    "accumulate": 1,
    "workers": 4,
    "epochs": 1,
    "questions": "picture",
    "question_options": {"image_processor": "image_processor", "evaluation_images": "evaluation_images"},
}
LONG = {"max_length": "int(4096 - (336 / 14) ** 2)"}

PROJECTOR: dict[str, Any] = {
    **LLAVA,
    "data": ("pretrain",),
    "lora": None,
    "batch_size": 32,
    "lr": 1e-3,
    "square": False,
}
"""First the projector alone, on captions."""
SHAREGPT4V: dict[str, Any] = {
    **PROJECTOR,
    **WHOLE,
    **LONG,
    "data": ("sharegpt4v_pretrain",),
    "data_root": "./data/sharegpt4v/",
    "batch_size": 16,
    "accumulate": 2,
    "save_steps": 1000,
    "num_questions_iters": 1000,
}

INSTRUCT: dict[str, Any] = {
    **LLAVA,
    "data": ("instruct",),
    "pretrained": "{key}_clip_vit_large_p14_336_e1_gpu8_pretrain/iter_2181",
    "sampler": "length",
    "batch_size": 16,
    "lora": {"r": 512, "lora_alpha": 256, "lora_dropout": 0.05},
}
"""Then the language model with it, on conversations."""
INSTRUCT_FULL: dict[str, Any] = {**INSTRUCT, **FULL, "freeze_llm": False}
LLAMA3_FULL: dict[str, Any] = {
    **INSTRUCT_FULL,
    "batch_size": 8,
    "accumulate": 2,
    "save_steps": 1000,
    "num_questions_iters": 1000,
}
INTERNVL_MIX: dict[str, Any] = {
    **INSTRUCT_FULL,
    **LONG,
    "data": (
        "sharegpt4v_caption",
        "llava_zh",
        "sharegpt4v",
        "dvqa",
        "chartqa",
        "ai2d",
        "docvqa",
        "geoqa",
        "synthdog",
    ),
    "data_root": "./data/internvl_sft/",
    "pretrained": "{key}_clip_vit_large_p14_336_e1_gpu8_sharegpt4v_pretrain/iter_9742",
    "save_steps": 5000,
    "num_questions_iters": 5000,
}
OFFICIAL = {"pretrained": "{key}_pretrain/iter_2181"}
ONE_CARD: dict[str, Any] = {
    "batch_size": 1,
    "workers": 0,
    "save_steps": 50000,
    "num_questions_iters": 50000,
    "pin_memory": False,
}

INTERNVL: dict[str, Any] = {
    "kind": "internvl",
    "data": ("instruct",),
    **WHOLE,
    "varlen": None,
    "max_length": 8192,
    "sampler": "length",
    "batch_size": 4,
    "accumulate": 4,
    "workers": 4,
    "epochs": 1,
    "lr": 1e-6,
    "weight_decay": 0.05,
    "freeze_llm": False,
    "save_steps": 1000,
    "save_total": 1,
    "save_optimizer": False,
    "num_questions_iters": None,
    "questions": None,
}
INTERNVL_LORA: dict[str, Any] = {
    **INTERNVL,
    "lora": {"r": 128, "lora_alpha": 256, "lora_dropout": 0.05, "target_modules": None},
    "batch_size": 8,
    "accumulate": 2,
    "freeze_llm": True,
}

VISION_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "clip_vit_large_p14_336_e1_gpu8_pretrain": PROJECTOR,
    "clip_vit_large_p14_336_e1_gpu8_sharegpt4v_pretrain": SHAREGPT4V,
    "quant_clip_vit_large_p14_336_e1_gpu1_pretrain": {**PROJECTOR, **ONE_CARD, "accumulate": 256},
    "quant_clip_vit_large_p14_336_e1_gpu8_pretrain": {**PROJECTOR, "lr": 5e-4, "pin_memory": False},
    "pretrain": {**PROJECTOR, **WHOLE},
    "qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune": {**INSTRUCT, "visual_lora": True},
    "qlora_clip_vit_large_p14_336_lora_e1_gpu8_finetune_refcoco": {
        **INSTRUCT,
        "data": ("refcoco", "inv_refcoco", "instruct"),
        "visual_lora": True,
    },
    "qlora_clip_vit_large_p14_336_e1_gpu1_finetune": {
        **INSTRUCT,
        **ONE_CARD,
        "lora": {"r": 64, "lora_alpha": 16, "lora_dropout": 0.05},
        # as many iterations as there are captions
        "pretrained": "{key}_quant_clip_vit_large_p14_336_e1_gpu1_pretrain/iter_558128",
        "accumulate": 128,
    },
    "clip_vit_large_p14_336_e1_gpu8_finetune": {
        **INSTRUCT_FULL,
        "dtype": "float32",
        "batch_size": 8,
        "accumulate": 2,
        "workers": 0,
        "pin_memory": False,
    },
    "full_clip_vit_large_p14_336_e1_gpu8_finetune": LLAMA3_FULL,
    "full_clip_vit_large_p14_336_lora_e1_gpu8_finetune": {**LLAMA3_FULL, "visual_lora": True},
    "full_clip_vit_large_p14_336_lora_e1_gpu8_internvl_finetune": {
        **INTERNVL_MIX,
        "visual_lora": True,
        "batch_size": 4,
        "accumulate": 4,
    },
    "full_clip_vit_large_p14_336_full_e2_gpu8_internvl_finetune": {
        **INTERNVL_MIX,
        "freeze_visual": False,
        "batch_size": 8,
        "accumulate": 2,
        "epochs": 2,
    },
    "llava_finetune": {**INSTRUCT_FULL, **OFFICIAL},
    "finetune_lora": {
        **INSTRUCT,
        **OFFICIAL,
        **WHOLE,
        "lora": {"r": 128, "lora_alpha": 256, "lora_dropout": 0.05},
    },
    "finetune": INTERNVL,
    "lora_finetune": INTERNVL_LORA,
    "qlora_finetune": {**INTERNVL_LORA, "bits": 4},
}
