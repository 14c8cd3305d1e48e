"""What a model folder holds, read from its small files and the headers of its weights; nothing is loaded (no torch)."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtuner.checkpoint.kind import KINDS, PACKED_BY, UNKNOWN_PACKING, is_built_in
from xtuner.errors import UserError

BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I16": 16}
FORMATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8", "I8": "int8"}
WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
MOST_HEADER = 100_000_000
"""Bytes; the format allows no longer header."""
HEADS = ("lm_head.weight", "output.weight", "output_layer.weight", "embed_out.weight")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "qwen.tiktoken", "vocab.json")

Config = Mapping[str, Any]


@dataclass
class Weights:
    """What the headers or the sizes of the weight files say."""

    num_files: int = 0
    num_bytes: int = 0
    num_parameters: int | None = None
    is_exact: bool = True
    """Counted from shapes, not estimated from sizes of files."""
    dtypes: Counter[str] = field(default_factory=Counter)
    """Number format -> how many numbers are stored in it."""
    names: set[str] = field(default_factory=set)
    kind: str = "safetensors"


def first_of(config: Config, *keys: str) -> Any:
    """Return the first of several keys that has a value; families name the same thing differently."""
    return next((config[key] for key in keys if config.get(key) is not None), None)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json; what a model that sees says about its language model is spread over it.

    Raises:
        UserError: it is not there, or is not JSON.
    """
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text("utf-8"))
        inner = first_of(values, "text_config", "llm_config") or {}
        return {**values, **(inner if isinstance(inner, dict) else {}), "model_type": values.get("model_type")}
    except OSError as error:
        raise UserError(f"{folder} holds no config.json, so it is no model.", "Give the folder of a model.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a JSON object.", "Download or copy the model again.") from error


def read_json_file(file: Path) -> dict[str, Any]:
    """Read a small JSON file; one that is missing or broken is empty."""
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def foreign_code(settings: Iterable[Config]) -> list[str]:
    """Return the program files that the `auto_map`s of config.json and tokenizer_config.json name, with the classes
    that are taken from each; `repo--file.py` is in another repository."""
    classes: dict[str, set[str]] = {}
    for values in settings:
        entries = values.get("auto_map") or {}
        for value in entries.values() if isinstance(entries, dict) else [entries]:
            for one in value if isinstance(value, list) else [value]:
                module, _, name = str(one or "").rpartition(".")
                if name:
                    classes.setdefault(f"{module}.py", set()).add(name)
    return [f"{file} ({', '.join(sorted(names))})" for file, names in sorted(classes.items())]


def read_weights(folder: Path, config: Config) -> Weights:
    """Read the headers of safetensors files; of .bin files their sizes only.

    Raises:
        UserError: a header is damaged.
    """
    files, names, total = weight_files(folder, "model", "safetensors")
    found = Weights(len(files), sum(file.stat().st_size for file in files) or total, names=names)
    if files:
        found.num_parameters = 0
        for file in files:
            for name, entry in read_header(file).items():
                count = math.prod(entry["shape"])
                found.names.add(name)
                found.dtypes[FORMATS.get(entry["dtype"], entry["dtype"])] += count
                found.num_parameters += count
        return found
    if not total:
        files, names, total = weight_files(folder, "pytorch_model", "bin")
        found = Weights(len(files), sum(file.stat().st_size for file in files) or total, names=names, kind="bin")
    stored = str(first_of(config, "dtype", "torch_dtype") or "")
    found.is_exact = False
    if found.num_bytes and stored in WIDTHS:
        found.num_parameters = found.num_bytes // WIDTHS[stored]
        found.dtypes[stored] = found.num_parameters
    return found


def read_header(file: Path) -> dict[str, Any]:
    """Return name -> {dtype, shape} of a safetensors file (https://github.com/huggingface/safetensors).

    Raises:
        UserError: it is cut short or no such file.
    """
    try:
        with file.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            if not 0 < length <= min(MOST_HEADER, os.fstat(raw.fileno()).st_size):
                raise ValueError("no header")
            header = json.loads(raw.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        if 8 + length + end > file.stat().st_size:
            raise ValueError("cut short")
        return {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{file} is cut short or is no weight file.", "Copy or download it again.") from error


def weight_files(folder: Path, stem: str, suffix: str) -> tuple[list[Path], set[str], int]:
    """Return the files of a checkpoint that are here, and the tensor names and total bytes that an index states.

    Other files with such an ending (adapters, optimiser states) are none of it.
    """
    single, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
    if single.is_file():
        return [single], set(), 0
    names, total = _read_index(index) if index.is_file() else (set(), 0)
    return sorted(folder.glob(f"{stem}-*-of-*.{suffix}")), names, total


def _read_index(file: Path) -> tuple[set[str], int]:
    try:
        values = json.loads(file.read_text("utf-8"))
        return set(values["weight_map"]), int(values.get("metadata", {}).get("total_size", 0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not an index of weights.", "Copy or download it again.") from error


def describe_model(folder: Path) -> dict[str, str]:
    """Return what a model folder holds, title -> text, in the order in which people ask.

    Raises:
        UserError: no model, or damaged files.
    """
    config = read_config(folder)
    weights = read_weights(folder, config)
    kind = str(config.get("model_type") or "not said")
    known = KINDS.get(kind)
    found = {
        "family": f"{known.name} ({kind})" if known else kind,
        "code": _code(kind),
        "size": _size(weights),
        "on disk": _on_disk(weights, config),
        "shape": _shape(config),
        "heads": _heads(config),
        "context": _context(config),
        "tokenizer": _tokenizer(folder, config),
        "attention": PACKED_BY[known.packing] if known else UNKNOWN_PACKING,
        "LoRA": _targets(kind, weights),
        "special": "; ".join(special(kind, config, weights)),
    }
    return {title: text for title, text in found.items() if text}


def special(kind: str, config: Config, weights: Weights) -> Iterator[str]:
    """Yield what training and merging must know about a model beyond its sizes."""
    has_head = not weights.names or any(name.endswith(head) for name in weights.names for head in HEADS)
    speaks = any("CausalLM" in str(name) for name in config.get("architectures") or [])
    if config.get("tie_word_embeddings") or (speaks and not has_head):
        yield "the output head is the embedding (tied)"
    if kind == "baichuan":
        if _norms_head(config):
            yield "NormHead (the rows of the output head are normed)"
        if config.get("max_position_embeddings") is None:
            yield "ALiBi instead of rotary positions"
    if config.get("alibi"):
        yield "ALiBi instead of rotary positions"
    if config.get("attn_logit_softcapping"):
        yield f"attention scores within {config['attn_logit_softcapping']:g} (soft cap)"
    if config.get("final_logit_softcapping"):
        yield f"logits within {config['final_logit_softcapping']:g} (soft cap)"
    if config.get("logit_scale"):
        yield f"logits times {config['logit_scale']:g}"
    if config.get("logits_scaling"):
        yield f"logits divided by {config['logits_scaling']:g}"
    if config.get("kv_lora_rank"):
        yield "latent attention (MLA)"
    rope = config.get("rope_parameters")
    share = first_of({**(rope if isinstance(rope, dict) else {}), **config}, "partial_rotary_factor")
    if share not in (None, 1):
        yield f"rotary positions on {share:g} of each head"
    experts = first_of(config, "num_local_experts", "num_experts", "n_routed_experts")
    if experts:
        each = first_of(config, "num_experts_per_tok", "moe_topk")
        beside = "" if is_built_in(kind) else "; a layer's are one fused weight, which adapters leave as it is"
        yield f"mixture of {experts} experts, {each or 'some'} per token{beside}"
    quant = config.get("quantization_config")
    if isinstance(quant, dict):
        yield f"weights are quantised ({quant.get('quant_method', 'of an unknown kind')}), so nothing merges into them"


def _norms_head(config: Config) -> bool:
    """Tell Baichuan 2 by its config, as its family does."""
    if (said := config.get("norm_head")) is not None:
        return bool(said)
    rotates = config.get("max_position_embeddings") is not None
    signs = first_of(config, "tokenizer_class", "z_loss_weight") is not None
    signs = signs or (rotates and "BaichuanForCausalLM" in (config.get("architectures") or []))
    return {64000: False, 125696: True}.get(config.get("vocab_size", 64000), signs)


def _code(kind: str) -> str:
    if is_built_in(kind):
        return "built in here"
    return "that of transformers" if kind in KINDS else ""


def _size(weights: Weights) -> str:
    if weights.num_parameters is None:
        return "not known (no weights here)"
    billions = weights.num_parameters / 1e9
    short = f"{billions:.2f} billion" if billions >= 0.1 else f"{weights.num_parameters / 1e6:.1f} million"
    return f"{weights.num_parameters:,} parameters ({short})" if weights.is_exact else f"about {short} parameters"


def _on_disk(weights: Weights, config: Config) -> str:
    dtypes = ", ".join(name for name, _ in weights.dtypes.most_common(3)) or str(
        first_of(config, "dtype", "torch_dtype") or ""
    )
    if not weights.num_files:
        return dtypes
    files = "1 file" if weights.num_files == 1 else f"{weights.num_files} files"
    return f"{dtypes or 'number format not known'}, {weights.num_bytes / 1e9:.2f} GB in {files} ({weights.kind})"


def _shape(config: Config) -> str:
    parts = {
        "layers": first_of(config, "num_hidden_layers", "num_layers", "n_layer"),
        "wide": first_of(config, "hidden_size", "n_embd", "d_model"),
        "tokens in the vocabulary": first_of(config, "padded_vocab_size", "vocab_size"),
    }
    return ", ".join(f"{value:,} {unit}" for unit, value in parts.items() if isinstance(value, int))


def _heads(config: Config) -> str:
    heads = first_of(config, "num_attention_heads", "n_head")
    width = first_of(config, "hidden_size", "n_embd")
    if not isinstance(heads, int) or not heads:
        return ""
    shared = first_of(config, "num_key_value_heads", "multi_query_group_num")
    if config.get("multi_query") is True and shared is None:
        shared = 1
    if config.get("kv_lora_rank"):
        return str(heads)  # latent: all heads have keys and values of their own, in three sizes
    size = first_of(config, "head_dim", "kv_channels") or (width // heads if width else None)
    keys = f", {shared} for keys and values" if shared not in (None, heads) else ""
    return f"{heads}{keys}" + (f", of {size}" if size else "")


def _context(config: Config) -> str:
    length = first_of(config, "max_position_embeddings", "seq_length", "model_max_length", "n_positions")
    parts = [f"{length:,} tokens"] if isinstance(length, int) else []
    rope = first_of(config, "rope_parameters", "rope_scaling")
    if isinstance(rope, dict):
        scaling = first_of(rope, "rope_type", "type")
        if scaling not in (None, "default"):
            factor = f" x {rope['factor']:g}" if isinstance(rope.get("factor"), int | float) else ""
            parts.append(f"rotary positions scaled: {scaling}{factor}")
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        parts.append(f"a sliding window of {config['sliding_window']:,}")
    return ", ".join(parts)


def _tokenizer(folder: Path, config: Config) -> str:
    files = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        return "none in this folder"
    said = read_json_file(folder / "tokenizer_config.json").get("tokenizer_class")
    own = " (built in here)" if is_built_in(config.get("model_type")) else ""
    return f"{said or 'class not said'}{own}, from {', '.join(files)}"


def _targets(kind: str, weights: Weights) -> str:
    known = KINDS.get(kind)
    if known is None:
        return "on every linear layer but the output head"
    last = {name.removesuffix(".weight").rpartition(".")[2] for name in weights.names}
    targets = [name for name in known.targets if name in last or not weights.names]
    return f"on {', '.join(targets)}" if targets else ""
