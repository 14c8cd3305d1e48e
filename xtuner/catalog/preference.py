"""Writes the parts of configs that train on pairs of answers: DPO, ORPO, reward models."""

from collections.abc import Mapping

from xtuner.catalog.data_part import PACKED, loader
from xtuner.catalog.model_part import language_model, lora, tokenizer
from xtuner.catalog.page import PreferencePage
from xtuner.catalog.settings import asking, parallel, saving, steps
from xtuner.catalog.text import assign, call

# objective -> its variables: name, value, argument of the model
OBJECTIVES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "DPO": (
        ("dpo_loss_type", "'sigmoid'", "loss_type"),
        ("loss_beta", "0.1", "beta"),
        ("label_smoothing", "0.0", "label_smoothing"),
    ),
    "ORPO": (("loss_beta", "0.1", "beta"),),
    "RewardModel": (("loss_type", "'focal'", "loss_type"), ("penalty_type", "'log_barrier'", "penalty_type")),
}

OWN_FILES = "['/your/jsonl/path/here.jsonl', '/your/another/jsonl/path/here.jsonl']"
# key -> loader, its arguments, map function
PREFERENCE_SOURCES: Mapping[str, tuple[str, tuple[str, str], str]] = {
    "orpo_mix": ("load_dataset", ("path", "'mlabonne/orpo-dpo-mix-40k'"), "orpo_dpo_mix_40k_map_fn"),
    "ultrafeedback": (
        "load_dataset",
        ("path", "'argilla/ultrafeedback-binarized-preferences-cleaned'"),
        "orpo_dpo_mix_40k_map_fn",
    ),
    "preference_files": ("load_jsonl_dataset", ("data_files", OWN_FILES), "None"),
}


def settings(page: PreferencePage) -> str:
    """Write PART 1."""
    lines = ["# Model", f"pretrained_model_name_or_path = {page.path!r}", f"use_varlen_attn = {page.varlen}", ""]
    lines += ["# Loss", *(f"{name} = {value}" for name, value, _ in OBJECTIVES[page.objective])]
    if page.objective == "RewardModel":
        lines.append(f"reward_token_id = {page.reward_token}  # where a reward is read")
    lines += ["", "# Data"]
    if page.questions is not None:
        lines.append(f"prompt_template = PROMPT_TEMPLATE.{page.template}")
    lines.append(f"max_length = {page.max_length}  # tokens")
    if page.varlen:
        lines.append("max_packed_length = max_length * 2")
    return "\n".join([*lines, "", *parallel(page), *steps(page), *saving(page), *asking(page)]).rstrip()


def model(page: PreferencePage) -> str:
    """Write PART 2."""
    # a reward model gives a number, not words
    task = "FEATURE_EXTRACTION" if page.objective == "RewardModel" else "CAUSAL_LM"
    whole = call(
        [
            ("type", page.objective),
            ("use_varlen_attn", "use_varlen_attn"),
            *((argument, name) for name, _, argument in OBJECTIVES[page.objective]),
            ("llm", language_model(page)),
            ("lora", lora(page.lora, task)) if page.lora else None,
        ]
    )
    return f"{assign('tokenizer', tokenizer(page))}\n\n{assign('model', whole)}"


def data(page: PreferencePage) -> str:
    """Write PART 3."""
    kind, argument, map_function = PREFERENCE_SOURCES[page.data[0]]
    reward = page.objective == "RewardModel"
    pairs = call(
        [
            ("type", "build_preference_dataset"),
            ("dataset", call([("type", kind), argument])),
            ("tokenizer", "tokenizer"),
            ("max_length", "max_length"),
            ("dataset_map_fn", map_function),
            ("is_dpo", str(not reward)),
            ("is_reward", str(reward)),
            ("reward_token_id", "reward_token_id" if reward else "-1"),
            ("num_proc", "32"),
            PACKED,
            ("max_packed_length", "max_packed_length") if page.varlen else None,
            ("shuffle_before_pack", "True"),
        ]
    )
    return f"{assign('train_dataset', pairs)}\n\n{loader(page, 'train_dataset', 'preference_collate_fn')}"
