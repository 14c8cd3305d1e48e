"""Writes PART 2 of a config, and the blocks of it that several kinds of configs share."""

from collections.abc import Mapping
from typing import Any

from xtuner.catalog.page import Page, TextPage
from xtuner.catalog.text import Call, assign, call, number

CHECKPOINT = "pretrained_model_name_or_path"


def from_pretrained(kind: str, path: str, *further: tuple[str, Any] | None) -> Call:
    """Write what is loaded from a checkpoint; `path` is the variable that holds its place."""
    return call([("type", f"{kind}.from_pretrained"), (CHECKPOINT, path), *further])


def tokenizer(page: Page, path: str = CHECKPOINT, kind: str = "AutoTokenizer") -> Call:
    """Write the tokenizer."""
    further = [(name, repr(value)) for name, value in page.tokenizer.items()]
    side = ("padding_side", repr(page.padding_side))
    return from_pretrained(kind, path, ("trust_remote_code", "True"), *further, side)


def quantisation(page: Page) -> Call:
    """Write how weights are stored in 4 bits."""
    return call(
        [
            ("type", "BitsAndBytesConfig"),
            ("load_in_4bit", "True"),
            ("load_in_8bit", "False"),
            ("llm_int8_threshold", "6.0"),
            ("llm_int8_has_fp16_weight", "False"),
            ("bnb_4bit_compute_dtype", "torch.float16"),
            ("bnb_4bit_use_double_quant", "True"),
            ("bnb_4bit_quant_type", "'nf4'"),
            ("bnb_4bit_quant_storage", "torch.float16") if page.quant_storage else None,
        ]
    )


def language_model(
    page: Page, path: str = CHECKPOINT, kind: str = "AutoModelForCausalLM", further: Mapping[str, str] | None = None
) -> Call:
    """Write the language model."""
    return from_pretrained(
        kind,
        path,
        ("trust_remote_code", "True"),
        ("torch_dtype", f"torch.{page.dtype}") if page.dtype else None,
        ("attn_implementation", repr(page.attention)) if page.attention else None,
        ("load_in_8bit", "True") if page.bits == 8 else None,
        ("quantization_config", quantisation(page)) if page.bits == 4 else None,
        *(further or {}).items(),
    )


def lora(options: Mapping[str, Any], task: str | None = "CAUSAL_LM", *, bias: bool = True) -> Call:
    """Write a `LoraConfig`."""
    written = [(name, number(value) if isinstance(value, float) else repr(value)) for name, value in options.items()]
    return call(
        [
            ("type", "LoraConfig"),
            *written,
            ("bias", "'none'") if bias else None,
            ("task_type", repr(task)) if task else None,
        ]
    )


def model(page: TextPage) -> str:
    """Write PART 2 of supervised training on texts."""
    path = "tokenizer_path" if page.tokenizer_path else CHECKPOINT
    whole = call(
        [
            ("type", "SupervisedFinetune"),
            ("use_varlen_attn", "use_varlen_attn"),
            ("tokenizer", "tokenizer") if page.tokenizer_path else None,
            ("max_position_embeddings", "max_position_embeddings") if page.max_positions else None,
            ("llm", language_model(page, kind=page.llm, further=page.llm_options)),
            ("lora", lora(page.lora)) if page.lora else None,
        ]
    )
    return f"{assign('tokenizer', tokenizer(page, path, page.tokenizer_type))}\n\n{assign('model', whole)}"
