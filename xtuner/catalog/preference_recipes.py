"""Training on pairs of answers. A recipe says only what differs from `page.PreferencePage`."""

from collections.abc import Mapping
from typing import Any

from xtuner.catalog.method import WHOLE

QLORA: dict[str, Any] = {"kind": "preference", "parallel": None}
FULL: dict[str, Any] = {**QLORA, **WHOLE}
PACKED: dict[str, Any] = {"varlen": True, "parallel": 1}
"""Several pairs follow one another in a row."""

DPO: dict[str, Any] = {"objective": "DPO", "data": ("orpo_mix",), "lr": 5e-7, "system": "alpaca"}
ORPO: dict[str, Any] = {"objective": "ORPO", "data": ("orpo_mix",), "lr": 5e-6, "system": "alpaca", "info": None}
REWARD: dict[str, Any] = {
    "objective": "RewardModel",
    "data": ("ultrafeedback",),
    "epochs": 1,
    "lr": 2e-5,
    "info": None,
    "num_questions_iters": None,
    "questions": None,
}
FILES = {"data": ("preference_files",)}
ULTRAFEEDBACK_E5 = {"data": ("ultrafeedback",), "epochs": 5, "warmup": 0.01}

PREFERENCE_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "dpo_full": {**FULL, **DPO},
    "dpo_full_varlenattn": {**FULL, **DPO, **PACKED},
    "dpo_full_varlenattn_jsonl_dataset": {**FULL, **DPO, **PACKED, **FILES},
    "dpo_qlora": {**QLORA, **DPO},
    "dpo_qlora_varlenattn": {**QLORA, **DPO, **PACKED},
    "orpo_full": {**FULL, **ORPO},
    "orpo_full_varlenattn": {**FULL, **ORPO, **PACKED},
    "orpo_full_varlenattn_jsonl_dataset": {**FULL, **ORPO, **PACKED, **FILES},
    "orpo_qlora_varlenattn_ultrafeedback_e5": {**QLORA, **ORPO, **PACKED, **ULTRAFEEDBACK_E5},
    "reward_full_ultrafeedback": {**FULL, **REWARD, "batch_size": 4, "num_questions_iters": 500},
    "reward_full_varlenattn_ultrafeedback": {**FULL, **REWARD, **PACKED},
    "reward_full_varlenattn_jsonl_dataset": {**FULL, **REWARD, **PACKED, **FILES},
    "reward_qlora_varlenattn_ultrafeedback": {**QLORA, **REWARD, **PACKED, "lr": 1e-4},
}
