"""The model of a 0.1.x config: what is trained and what is minimised, the checkpoint, 4 or 8 bits, LoRA, tokenizer."""

from collections.abc import Sequence
from typing import Any

from xtuner.config.table import Table
from xtuner.errors import UserError
from xtuner.legacy.phrase import Phrase, as_phrase, short
from xtuner.legacy.vocabulary import dotted

LOADERS = (
    "AutoModelForCausalLM.from_pretrained",
    "MistralForCausalLM.from_pretrained",
    "DeepseekV2ForCausalLM.from_pretrained",
)
TOKENIZERS = ("AutoTokenizer.from_pretrained", "LlamaTokenizer.from_pretrained")
TOKENIZER_OPTIONS = (
    *("eos_token", "bos_token", "unk_token", "encode_special_tokens"),
    *("additional_special_tokens", "extra_special_tokens"),
)
TEXT_MODELS = ("SupervisedFinetune", "DPO", "ORPO", "RewardModel")

OBJECTIVES: dict[str, tuple[str, tuple[str, ...]]] = {
    "SupervisedFinetune": ("sft", ()),
    "DPO": ("dpo", ("beta", "loss_type", "label_smoothing")),
    "ORPO": ("orpo", ("beta",)),
    "RewardModel": ("reward", ("loss_type", "penalty_type", "penalty_weight", "reward_token_id")),
}
"""Model word -> objective, and its arguments that are options of it."""

# what 0.1.x computed in float16 is computed in the best format that the device has
DTYPES = {"float16": "auto", "half": "auto", "bfloat16": "bfloat16", "float32": "float32", "float": "float32"}
# flash_attention_2 asked for what attention here always is: no padding, one kernel over whole packs
ATTENTION = {None: "auto", "flash_attention_2": "auto", "flash_attention_3": "auto", "sdpa": "sdpa", "eager": "eager"}


def read_text_model(model: Phrase) -> tuple[Table, Table]:
    """Translate a model that reads text: the tables of its `ModelSpec` and of its objective.

    Raises:
        UserError: a word or an argument that is not known or cannot be followed.
    """
    spec = Table(file=model.table.file, line=model.table.line)
    model.role = TEXT_MODELS[0]
    model.need("llm")
    llm = model.phrase("llm", *LOADERS)
    assert llm is not None
    read_checkpoint(llm, spec)
    lora = model.phrase("lora", "LoraConfig")
    if lora is not None:
        spec.put("lora", read_lora(lora), model.line("lora"))
    model.move("peft_model", spec, "adapter")
    model.move("use_activation_checkpointing", spec, "recompute")
    model.move("max_position_embeddings", spec, "max_position_embeddings")
    if model.take("tokenizer") is not None:
        spec.put("resize_vocab", True, model.line("tokenizer"))
    objective = read_objective(model)
    model.done()
    check_trainable(spec, model.where("llm"))
    return spec, objective


def read_objective(model: Phrase) -> Table:
    """Translate what `DPO` and the others say beside the model."""
    name, arguments = OBJECTIVES[model.word]
    options = Table(file=model.table.file, line=model.table.line)
    for argument in arguments:
        model.move(argument, options, argument)
    if name == "dpo":
        reference = model.phrase("ref_llm", *LOADERS)
        if reference is not None:
            options.put("ref_model", reference.need("pretrained_model_name_or_path"), model.line("ref_llm"))
    return Table({"name": name, "options": options}, file=model.table.file, line=model.line("type"))


def check_trainable(spec: Table, where: str) -> None:
    """Refuse quantised weights without anything else to train."""
    if "quant" in spec and "lora" not in spec and not spec.get("freeze"):
        raise UserError(
            f"{where}: weights in {spec['quant'].get('bits', 4)} bits cannot be trained themselves.",
            "Add lora=dict(type=LoraConfig, ...), or remove quantization_config.",
        )


def read_checkpoint(llm: Phrase, spec: Table) -> None:
    """Translate `from_pretrained` of a language model."""
    llm.role = LOADERS[0]
    spec.put("path", llm.need("pretrained_model_name_or_path"), llm.line("pretrained_model_name_or_path"))
    if (dtype := llm.take("torch_dtype", llm.take("dtype"))) is not None:
        spec.put("dtype", read_dtype(dtype, llm.where("torch_dtype")), llm.line("torch_dtype"))
    llm.only("revision", None, "main", fix="Download that revision, and give its folder as the model.")
    read_bits(llm, spec)
    attention = llm.take("attn_implementation")
    if attention not in ATTENTION:
        where = llm.where("attn_implementation")
        known = ", ".join(name for name in ATTENTION if name)
        raise UserError(f"{where}: attn_implementation is {short(attention)}.", f"Known: {known}.")
    if ATTENTION[attention] != "auto":
        spec.put("attention", ATTENTION[attention], llm.line("attn_implementation"))
    llm.done()


def read_bits(loader: Phrase, spec: Table) -> None:
    """Translate `quantization_config`, `load_in_4bit` and `load_in_8bit` of a `from_pretrained`."""
    quant = loader.phrase("quantization_config", "BitsAndBytesConfig")
    if quant is not None and (bits := read_quant(quant)) is not None:
        spec.put("quant", bits, loader.line("quantization_config"))
    for argument, number in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if loader.take(argument):
            line = loader.line(argument)
            spec.put("quant", Table({"bits": number}, file=spec.file, line=line), line)


def read_dtype(value: Any, where: str) -> str:
    """Translate `torch.float16` and its like, imported or as a text.

    Raises:
        UserError: another type.
    """
    name = (dotted(value) or "").removeprefix("torch.")
    if name == "auto":
        return "auto"
    if name not in DTYPES:
        raise UserError(f"{where}: {value} is not a number format that can be used.", f"Known: {', '.join(DTYPES)}.")
    return DTYPES[name]


def read_quant(quant: Phrase) -> Table | None:
    """Translate `BitsAndBytesConfig`; None when it asks for neither 4 nor 8 bits."""
    four, eight = quant.take("load_in_4bit", False), quant.take("load_in_8bit", False)
    spec = Table(file=quant.table.file, line=quant.table.line)
    if four and eight:
        raise UserError(f"{quant.where('load_in_8bit')}: 4 bits and 8 bits at once.", "Set one of them to False.")
    threshold, kind = quant.take("llm_int8_threshold", 6.0), quant.take("bnb_4bit_quant_type", "fp4")
    quant.only(
        "llm_int8_skip_modules", None, ["lm_head"], fix="Remove llm_int8_skip_modules: the head is never quantised."
    )
    double, compute = quant.take("bnb_4bit_use_double_quant", False), quant.take("bnb_4bit_compute_dtype")
    quant.done()
    if four:
        spec.put("bits", 4, quant.line("load_in_4bit"))
        spec.put("type", kind, quant.line("bnb_4bit_quant_type"))
        spec.put("double", double, quant.line("bnb_4bit_use_double_quant"))
        if compute is not None:
            where = quant.where("bnb_4bit_compute_dtype")
            spec.put("compute_dtype", read_dtype(compute, where), quant.line("bnb_4bit_compute_dtype"))
        return spec
    if eight:
        spec.put("bits", 8, quant.line("load_in_8bit"))
        spec.put("int8_threshold", threshold, quant.line("llm_int8_threshold"))
        return spec
    return None


def read_lora(lora: Phrase) -> Table:
    """Translate `LoraConfig`; what is not given has PEFT's defaults."""
    spec = Table(file=lora.table.file, line=lora.table.line)
    lora.move("r", spec, "r", default=8)
    lora.move("lora_alpha", spec, "alpha", default=8)
    lora.move("lora_dropout", spec, "dropout")
    lora.move("bias", spec, "bias")
    lora.move("target_modules", spec, "targets")
    if lora.take("modules_to_save") is not None:
        lora.move("modules_to_save", spec, "modules_to_save")
    lora.move("use_rslora", spec, "rslora")
    lora.move("use_dora", spec, "dora")
    lora.move("rank_pattern", spec, "rank_pattern")
    lora.move("alpha_pattern", spec, "alpha_pattern")
    lora.only("init_lora_weights", True, None, fix="Remove init_lora_weights: A is drawn, B begins at zero.")
    for argument in ("layers_to_transform", "layers_pattern", "exclude_modules"):
        lora.only(argument, None, [], fix=f"Remove {argument}, and let target_modules say it as a regular expression.")
    lora.done()
    return spec


def add_tokenizer(tokenizers: Sequence[Any], spec: Table, where: str) -> None:
    """Add the tokenizer that the data sets use to the spec of the model.

    Raises:
        UserError: they use different ones.
    """
    if not tokenizers:
        return
    for other in tokenizers[1:]:
        if other != tokenizers[0]:
            raise UserError(f"{where}: the data sets use different tokenizers.", "Give all of them the same.")
    phrase = as_phrase(tokenizers[0], TOKENIZERS, "tokenizer", where)
    phrase.role = TOKENIZERS[0]
    path = phrase.need("pretrained_model_name_or_path")
    if path != spec["path"]:
        spec.put("tokenizer", path, phrase.line("pretrained_model_name_or_path"))
    options = {name: phrase.take(name) for name in TOKENIZER_OPTIONS if name in phrase.table}
    phrase.only("revision", None, "main", fix="Download that revision, and give its folder as the tokenizer.")
    phrase.done()
    if options:
        spec.put("tokenizer_options", Table(options, file=spec.file, line=phrase.table.line), phrase.table.line)
