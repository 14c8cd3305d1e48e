"""Rows become conversations, conversations tokens and labels, these packs, and packs batches."""

FORMATS: dict[str, str] = {
    "alpaca": "xtuner.dataset.formats.column:alpaca",
    "alpaca_zh": "xtuner.dataset.formats.column:alpaca_zh",
    "arxiv": "xtuner.dataset.formats.column:arxiv",
    "code_alpaca": "xtuner.dataset.formats.column:code_alpaca",
    "colors": "xtuner.dataset.formats.column:colors",
    "conversation": "xtuner.dataset.formats.turn:conversation",
    "crime_kg_assitan": "xtuner.dataset.formats.column:crime_kg_assitan",
    "default": "xtuner.dataset.formats.column:default",
    "internevo": "xtuner.dataset.formats.token:internevo",
    "internevo_messages": "xtuner.dataset.formats.message:openai",
    "law_reference": "xtuner.dataset.formats.column:law_reference",
    "llava": "xtuner.dataset.formats.message:llava",
    "llava_image_only": "xtuner.dataset.formats.message:llava_image_only",
    "medical": "xtuner.dataset.formats.column:medical",
    "moss": "xtuner.dataset.formats.moss:moss",
    "msagent_react": "xtuner.dataset.formats.agent:msagent_react",
    "oasst1": "xtuner.dataset.formats.plain:oasst1",
    "openai": "xtuner.dataset.formats.message:openai",
    "openorca": "xtuner.dataset.formats.column:openorca",
    "pair": "xtuner.dataset.formats.column:pair",
    "pretrain": "xtuner.dataset.formats.plain:text",
    "sharegpt": "xtuner.dataset.formats.message:sharegpt",
    "sql": "xtuner.dataset.formats.column:sql",
    "stack_exchange": "xtuner.dataset.formats.column:stack_exchange",
    "text": "xtuner.dataset.formats.plain:text",
    "tiny_codes": "xtuner.dataset.formats.column:tiny_codes",
    "tokens": "xtuner.dataset.formats.token:tokens",
    "wizardlm": "xtuner.dataset.formats.message:wizardlm",
}
"""Row formats: name -> function `row -> Conversation | Script | Tokens`."""

PAIR_FORMATS: dict[str, str] = {
    "intel_orca_dpo": "xtuner.dataset.formats.preference:intel_orca_dpo",
    "orpo_dpo_mix_40k": "xtuner.dataset.formats.preference:orpo_dpo_mix_40k",
    "preference": "xtuner.dataset.formats.preference:preference",
}
"""Formats of preferences: name -> function `row -> Pair`."""

__all__ = ["FORMATS", "PAIR_FORMATS"]
