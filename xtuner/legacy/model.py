"""The model of a 0.1.x config: `SupervisedFinetune`, the checkpoint, 4 or 8 bits, LoRA, tokenizer."""

from typing import Any

from xtuner.config.table import Table
from xtuner.errors import UserError
from xtuner.legacy.phrase import Phrase, as_phrase, short
from xtuner.legacy.vocabulary import dotted

LOADERS = ("AutoModelForCausalLM.from_pretrained", "MistralForCausalLM.from_pretrained")
TOKENIZERS = ("AutoTokenizer.from_pretrained", "LlamaTokenizer.from_pretrained")
TOKENIZER_OPTIONS = ("eos_token", "bos_token", "unk_token", "encode_special_tokens")

# what 0.1.x computed in float16 is computed in the best format that the device has
DTYPES = {"float16": "auto", "half": "auto", "bfloat16": "bfloat16", "float32": "float32", "float": "float32"}
# flash_attention_2 asked for what attention here always is: no padding, one kernel over whole packs
ATTENTION = {None: "auto", "flash_attention_2": "auto", "sdpa": "sdpa", "eager": "eager"}


def read_model(root: Phrase) -> Table:
    """Translate `model` to the table of a `ModelSpec`.

    Raises:
        UserError: a word or an argument that is not known or cannot be followed.
    """
    root.need("model")
    model = root.phrase("model", "SupervisedFinetune")
    assert model is not None
    spec = Table(file=model.table.file, line=model.table.line)
    model.need("llm")
    llm = model.phrase("llm", *LOADERS)
    assert llm is not None
    read_checkpoint(llm, spec)
    lora = model.phrase("lora", "LoraConfig")
    if lora is not None:
        spec.put("lora", read_lora(lora), model.line("lora"))
    model.move("peft_model", spec, "adapter")
    model.move("use_activation_checkpointing", spec, "recompute")
    model.done()
    if "quant" in spec and lora is None:
        raise UserError(
            f"{model.where('llm')}: weights in {spec['quant'].get('bits', 4)} bits cannot be trained themselves.",
            "Add lora=dict(type=LoraConfig, ...), or remove quantization_config.",
        )
    return spec


def read_checkpoint(llm: Phrase, spec: Table) -> None:
    """Translate `from_pretrained` of a language model."""
    llm.role = LOADERS[0]
    spec.put("path", llm.need("pretrained_model_name_or_path"), llm.line("pretrained_model_name_or_path"))
    if (dtype := llm.take("torch_dtype", llm.take("dtype"))) is not None:
        spec.put("dtype", read_dtype(dtype, llm.where("torch_dtype")), llm.line("torch_dtype"))
    quant = llm.phrase("quantization_config", "BitsAndBytesConfig")
    if quant is not None and (bits := read_quant(quant)) is not None:
        spec.put("quant", bits, llm.line("quantization_config"))
    for argument, number in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if llm.take(argument):
            spec.put("quant", Table({"bits": number}, file=spec.file, line=llm.line(argument)), llm.line(argument))
    attention = llm.take("attn_implementation")
    if attention not in ATTENTION:
        where = llm.where("attn_implementation")
        known = ", ".join(name for name in ATTENTION if name)
        raise UserError(f"{where}: attn_implementation is {short(attention)}.", f"Known: {known}.")
    if ATTENTION[attention] != "auto":
        spec.put("attention", ATTENTION[attention], llm.line("attn_implementation"))
    llm.done()


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
    lora.done()
    return spec


def add_tokenizer(tokenizers: list[Any], spec: Table, where: str) -> None:
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
    phrase.done()
    if options:
        spec.put("tokenizer_options", Table(options, file=spec.file, line=phrase.table.line), phrase.table.line)
