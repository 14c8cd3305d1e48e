"""The arithmetic of a LoRA adapter on plain weights: W + scale * B @ A, without the model around it."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from xtuner.checkpoint.adapter import PREFIX, file_name, module_name
from xtuner.checkpoint.shards import ShardReader
from xtuner.errors import UserError

BLOCK = 2**24
"""Elements that are in memory in fp32 at a time, beside the weight itself."""
EMBEDDINGS = ("embed_tokens", "tok_embeddings", "word_embeddings", "wte", "embed_in")
TIED_HEADS = {"model.tok_embeddings": "output", "transformer.embedding.word_embeddings": "transformer.output_layer"}
"""Embeddings whose models do not call their head `lm_head`."""
HEADS = ("lm_head", "output", "output_layer", "embed_out")

EXPERT = re.compile(r"\.experts\.\d+\.")
"""In the name of a module: it belongs to one of several experts."""

KNOWN = {
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "modules_to_save", "bias", "layers_to_transform", "layers_pattern"),
    *("init_lora_weights", "megatron_core", "qalora_group_size", "runtime_config", "eva_config", "loftq_config"),
    "peft_version",
}
"""Fields of a PEFT `LoraConfig` that are understood here, or that do not change what the saved weights mean."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base weights as they are; others (PiSSA, OLoRA, ...) change them."""


@dataclass
class _Pair:
    """The low-rank matrices of one module: `down` (r, in), `up` (out, r)."""

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None
    """(out,): DoRA's lengths of the rows (https://arxiv.org/abs/2402.09353)."""
    is_embedding: bool = False
    transposed: bool = False
    """The weight is stored (in, out)."""

    def blocks(self, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of W + scale * B @ A in fp32, in blocks of at most `BLOCK` elements, in the layout of W."""
        left, right = (self.down.T, self.up.T) if self.is_embedding or self.transposed else (self.up, self.down)
        left, right = left.to(weight.device).float(), self.scale * right.to(weight.device).float()
        height = max(1, BLOCK // weight.shape[1])
        for start in range(0, weight.shape[0], height):
            rows = slice(start, start + height)
            yield rows, weight[rows].float() + left[rows] @ right


class Fold:
    """An adapter read from a PEFT folder, ready to be folded into the weights of its base.

    Raises:
        UserError: the adapter uses something of PEFT that is not understood here, or lacks weights.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        _check_config(config)
        self._pairs: dict[str, _Pair] = {}
        self._whole: dict[str, Tensor] = {}
        raw: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if ".original_module." in key:
                continue  # PEFT's copy of what the base has, saved when a vocabulary has grown
            name = file_name(key)
            if name is None:
                raise UserError(f"The adapter holds {key}, which is no LoRA weight.", "Use an adapter that PEFT wrote.")
            module, kind = module_name(name), name.removeprefix(PREFIX).removeprefix(module_name(name) + ".")
            if kind.startswith("lora_"):
                raw.setdefault(module, {})[kind.removesuffix(".weight")] = tensor
            else:
                self._whole[f"{module}.{kind.removeprefix('base_layer.')}"] = tensor
        for module, parts in raw.items():
            self._pairs[module] = _pair(module, parts, config)
        targets = config.get("target_modules")
        partial = config.get("layers_to_transform") is not None or config.get("exclude_modules")
        self._targets = set(targets) if isinstance(targets, list | set | tuple) and not partial else set()
        if not self._pairs and not self._whole:
            raise UserError("The adapter holds no weights.", "Copy or download it again.")

    def _check_all_layers(self, base: ShardReader) -> None:
        """Refuse a base with more layers: every module of a name in `target_modules` must have its part.

        `layers_to_transform` and `exclude_modules` leave some out on purpose; what a regular expression means is not
        checked. Experts, which are modules in the files, are no modules in memory, so that they may go without.
        """
        targets = self._targets
        has_experts = any(EXPERT.search(module) for module in self._pairs)
        adapted = {module.rpartition(".")[2] for module in self._pairs}
        bare = sorted(
            module
            for name in base.names()
            if name.endswith(".weight") and (module := name.removesuffix(".weight")) not in self._pairs
            if module.rpartition(".")[2] in adapted & targets
            if has_experts or not EXPERT.search(module)
        )
        if bare:
            raise UserError(
                f"The adapter does not fit {base.folder}: it has nothing for {len(bare)} modules of the names it "
                f"adapts, such as {', '.join(bare[:3])}.",
                "Give the base model that the adapter was trained on (see its adapter_config.json).",
            )

    def names(self) -> set[str]:
        """Names of all base tensors that the adapter changes."""
        return {f"{module}.weight" for module in self._pairs} | set(self._whole)

    def modules(self) -> set[str]:
        """Names of the modules that have a low-rank part."""
        return set(self._pairs)

    def num_rows(self, name: str) -> int | None:
        """Rows of a weight that the adapter trained whole, or None."""
        return self._whole[name].shape[0] if name in self._whole else None

    def check(self, base: ShardReader) -> None:
        """Refuse a base that the adapter was not trained on.

        Raises:
            UserError: names modules that the base lacks, or whose shapes differ.
        """
        head = head_name(base)
        self._check_all_layers(base)
        absent = sorted(name for name in self.names() if name not in base and name != head)
        if absent:
            raise UserError(
                f"The adapter does not fit {base.folder}: it changes {len(absent)} weights that are not there, "
                f"such as {', '.join(absent[:3])}.",
                "Give the base model that the adapter was trained on (see its adapter_config.json).",
            )
        for module, pair in self._pairs.items():
            name = f"{module}.weight"
            if name in self._whole:
                continue
            shape = base.shape(name if name in base else embedding_name(base))
            wanted = (pair.up.shape[0], pair.down.shape[1])
            if shape != (wanted[::-1] if pair.is_embedding or pair.transposed else wanted):
                raise UserError(
                    f"The adapter does not fit {base.folder}: for {module} it needs a weight of {wanted}, not {shape}.",
                    "Give the base model that the adapter was trained on (see its adapter_config.json).",
                )
        for name, tensor in self._whole.items():
            if name in base and base.shape(name)[1:] != tuple(tensor.shape)[1:]:
                raise UserError(
                    f"The adapter does not fit {base.folder}: {name} is {tuple(tensor.shape)} there, "
                    f"and {base.shape(name)} in the base.",
                    "Give the base model that the adapter was trained on.",
                )

    def start(self, name: str, weight: Tensor) -> Tensor:
        """Return the weight that the adapter stands on: the base's, or the adapter's where it trained it whole."""
        return self._whole[name].to(weight.device, weight.dtype) if name in self._whole else weight

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """Return the merged weight `name` (out, in), computed in fp32, in the dtype of `weight`.

        Raises:
            UserError: the base weight is quantised, or the result does not fit its dtype.
        """
        if name not in self.names():
            return weight
        if weight.dtype not in FLOATS:
            raise UserError(
                f"The base weight {name} is quantised ({weight.dtype}), which an adapter cannot be merged into.",
                "Give the 16-bit version of the base model.",
            )
        merged = self.start(name, weight)
        pair = self._pairs.get(name.removesuffix(".weight"))
        if pair is not None:
            merged = merged.clone()
            for rows, block in pair.blocks(merged):
                if pair.magnitude is not None:
                    block *= (pair.magnitude[rows].to(block.device).float() / block.norm(dim=1))[:, None]
                merged[rows] = block.to(merged.dtype)
        if not bool(torch.isfinite(merged).all()):
            raise UserError(
                f"Merging {name} gives values that are no numbers, or that {merged.dtype} cannot hold.",
                "Use an adapter of an earlier checkpoint, or a base model in bfloat16.",
            )
        return merged

    def effective(self, name: str, weight: Tensor) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Yield places in a changed weight, and what base and adapter side by side stand for there, in fp32.

        That is what unit vectors come out of the module as: the arithmetic of `output`, not that of `apply`.
        """
        module, whole = name.removesuffix(".weight"), self.start(name, weight)
        pair = self._pairs.get(module)
        if pair is None:
            yield (slice(None),), whole.float()
            return
        by_rows = pair.is_embedding or pair.transposed
        count, width = whole.shape if by_rows else whole.shape[::-1]
        step = max(1, BLOCK // max(width, count))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            plain = (whole[part] if by_rows else whole[:, part].T).float()
            inputs = torch.arange(part.start, part.stop, device=whole.device)
            if not pair.is_embedding:
                inputs = torch.nn.functional.one_hot(inputs, count).float()
            block = self.output(module, inputs, plain, whole, None)
            yield ((part,), block) if by_rows else ((slice(None), part), block.T)

    def output(self, module: str, hidden: Tensor, output: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what a module gives with its adapter beside it, as PEFT computes it (not from merged weights).

        `hidden` is the input (..., in) or the ids (...) of an embedding, `output` (..., out) that of the base.
        """
        pair = self._pairs[module]
        down, up = pair.down.to(output.device).float(), pair.up.to(output.device).float()
        if pair.is_embedding:
            return output + pair.scale * (down.T[hidden] @ up.T)
        extra = pair.scale * ((hidden @ down.T) @ up.T)
        if pair.magnitude is None:
            return output + extra
        length = torch.cat([block.norm(dim=1) for _, block in pair.blocks(weight)])
        plain = output if bias is None else output - bias
        turned = (plain + extra) * (pair.magnitude.to(output.device).float() / length)
        return turned if bias is None else turned + bias


def embedding_name(base: ShardReader) -> str:
    """Name of the input embedding's weight in a checkpoint.

    Raises:
        UserError: none is recognised.
    """
    found = [name for name in base.names() if name.removesuffix(".weight").rpartition(".")[2] in EMBEDDINGS]
    if len(found) != 1:
        raise UserError(f"{base.folder} has no input embedding of a known name.", "Use another base model.")
    return found[0]


def head_name(base: ShardReader) -> str:
    """Name of the output head's weight in a checkpoint; the one it would have where it is tied to the embedding."""
    tied = next((head for embedding, head in TIED_HEADS.items() if f"{embedding}.weight" in base), "lm_head")
    return next((f"{head}.weight" for head in HEADS if f"{head}.weight" in base), f"{tied}.weight")


def _check_config(config: Mapping[str, Any]) -> None:
    strange = sorted(
        key for key, value in config.items() if key not in KNOWN and value not in (None, False, "", [], {})
    )
    if strange:
        raise UserError(
            f"The adapter uses {', '.join(strange)} of PEFT, which cannot be merged here.",
            "Merge it with PEFT (`merge_and_unload`) instead.",
        )
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise UserError(
            f"The adapter was started with {start}, which changed the base weights too.",
            "Convert it to a plain LoRA with PEFT (`path_initial_model_for_weight_conversion`) first.",
        )


def _pair(module: str, parts: dict[str, Tensor], config: Mapping[str, Any]) -> _Pair:
    is_embedding = "lora_embedding_A" in parts
    middle = "embedding_" if is_embedding else ""
    down, up = parts.pop(f"lora_{middle}A", None), parts.pop(f"lora_{middle}B", None)
    magnitude = parts.pop("lora_magnitude_vector", None)
    if down is None or up is None or parts:
        raise UserError(f"The adapter's weights for {module} are incomplete or of an unknown kind.", "Copy it again.")
    if down.ndim != 2 or up.ndim != 2 or (magnitude is not None and (is_embedding or config.get("fan_in_fan_out"))):
        raise UserError(
            f"The adapter's layer {module} is of a kind that cannot be merged here.",
            "Merge it with PEFT (`merge_and_unload`) instead.",
        )
    rank = down.shape[0]
    alphas = config.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.get("lora_alpha", 8))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return _Pair(down, up, scale, magnitude, is_embedding, bool(config.get("fan_in_fan_out")) and not is_embedding)
