"""What a plan knows of a model: its sizes, from config.json and the headers of its weights (no torch)."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xtuner.checkpoint.describe import HEADS, first_of, read_config, read_header, weight_files
from xtuner.checkpoint.kind import KINDS, is_built_in
from xtuner.engine.plan.known import find_known
from xtuner.errors import UserError

Place = Literal["attention", "attention_out", "mlp", "mlp_out"]
"""Where the input of a linear layer comes from: a norm, the attention, a norm, the inside of the MLP."""

OUTS = ("o_proj", "wo", "dense", "c_proj", "out_proj", "down_proj", "dense_4h_to_h", "w2", "fc2")
"""Layers that lead back to the width of the model."""
INNERS = ("intermediate_size", "ffn_hidden_size", "n_inner", "moe_intermediate_size")
UNGATED = ("bloom", "falcon", "gpt_bigcode", "starcoder2", "gpt2", "gpt_neox", "phi", "opt")
EYES = re.compile(r"(^|\.)(vision_tower|vision_model|visual|vision|multi_modal_projector|mlp1)\.")
LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Linear:
    """Linear layers of one name and size. `count` of them are in the model; a token runs through `share` of these."""

    name: str
    outputs: int
    inputs: int
    count: int
    place: Place
    share: float = 1.0
    fused: bool = False
    """Part of one weight of all experts, which is no linear layer to adapters and to quantisation."""

    @property
    def size(self) -> int:
        """Weights of all of them."""
        return self.outputs * self.inputs * self.count


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    kind: str
    source: str
    """Where the facts come from, in words."""
    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    """Width of the MLP, of all experts that a token is given to."""
    vocabulary: int
    linears: tuple[Linear, ...]
    tied: bool
    num_parameters: int
    gated: bool = True
    adapted_head: str | None = None
    """The name of the output head where a default adapter is put on it (InternLM2)."""
    holds_scores: bool = False
    """The attention scores exist in full, as no fused kernel knows what is done to them."""
    is_exact: bool = True
    """Counted from the headers of the weights."""

    @property
    def embedding(self) -> int:
        """Weights of the embedding; those of the head are as many, and the same if it is tied."""
        return self.vocabulary * self.hidden

    @property
    def rest(self) -> int:
        """Weights outside of the layers' matrices, the embedding and the head: norms and biases."""
        matrices = sum(linear.size for linear in self.linears) + self.embedding * (1 if self.tied else 2)
        return max(0, self.num_parameters - matrices)


def load_shape(path: str) -> Shape:
    """Return the sizes of a model folder, of a hub model that is on this disk, or the published ones of a known name.

    Raises:
        UserError: it is not here and not known, or its files are damaged or lack a size.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return shape_of(read_config(folder), str(folder), read_shapes(folder))
    cached = _find_cached(path)
    if cached is not None:
        shapes = read_shapes(cached)
        return shape_of(read_config(cached), f"{path}, as it is on this disk", shapes)
    known = find_known(path)
    if known is not None:
        return shape_of(known, f"{path}, the published sizes (it is not on this disk)", {})
    raise UserError(
        f"The sizes of {path} are not known: it is not on this disk, and its name is in no table.",
        "Download its config.json (a few kilobytes) into a folder and give that: model.path=FOLDER",
    )


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return tensor name -> shape from the headers of safetensors files; empty if not all of them are here."""
    files, names, _ = weight_files(folder, "model", "safetensors")
    found = {name: tuple(entry["shape"]) for file in files for name, entry in read_header(file).items()}
    return found if names <= found.keys() else {}


def _find_cached(path: str) -> Path | None:
    """Return the copy of a hub model that earlier runs have left on the disk."""
    from huggingface_hub import try_to_load_from_cache  # 0.1 s that a folder need not wait
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def shape_of(config: Mapping[str, Any], source: str, shapes: Mapping[str, tuple[int, ...]]) -> Shape:
    """Make the sizes of what config.json says, and `shapes` (tensor name -> shape) if they are known.

    Raises:
        UserError: a size is missing; names it.
    """
    kind = str(config.get("model_type") or "")
    hidden = _size(config, source, "hidden_size", "n_embd", "d_model")
    layers = _size(config, source, "num_hidden_layers", "num_layers", "n_layer")
    heads = _size(config, source, "num_attention_heads", "n_head")
    vocabulary = _size(config, source, "padded_vocab_size", "vocab_size")
    key_heads = first_of(config, "num_key_value_heads", "multi_query_group_num", "num_kv_heads")
    if key_heads is None:
        key_heads = 1 if config.get("multi_query") is True else heads
    head_size = first_of(config, "head_dim", "kv_channels") or hidden // heads
    if config.get("kv_lora_rank"):
        key_heads = heads
        head_size = int(config.get("qk_nope_head_dim") or 0) + int(config.get("qk_rope_head_dim") or 0) or head_size
    experts = first_of(config, "num_local_experts", "num_experts", "n_routed_experts") or 0
    chosen = first_of(config, "num_experts_per_tok", "moe_topk") or (1 if experts else 0)
    inner = int(first_of(config, *INNERS) or 4 * hidden)
    if kind == "qwen":
        inner //= 2
    fused = bool(experts) and not is_built_in(kind)
    if shapes:
        linears = _count_linears(shapes, hidden, chosen / experts if experts else 1.0, fused)
        inner = round(sum(x.inputs * x.count * x.share for x in linears if x.place == "mlp_out") / layers) or inner
    else:
        linears = _usual_linears(kind, layers, hidden, heads * head_size, key_heads * head_size, inner, experts, chosen)
        inner *= max(chosen, 1)
    tied = bool(config.get("tie_word_embeddings")) or bool(shapes and not _has_head(shapes))
    counted = sum(math.prod(shape) for shape in shapes.values())
    matrices = sum(linear.size for linear in linears) + vocabulary * hidden * (1 if tied else 2)
    targets = KINDS[kind].targets if kind in KINDS else ()
    return Shape(
        kind=kind,
        source=source,
        layers=layers,
        hidden=hidden,
        heads=heads,
        key_heads=int(key_heads),
        head_size=int(head_size),
        inner=inner,
        vocabulary=vocabulary,
        linears=tuple(linears),
        tied=tied,
        num_parameters=counted or matrices + (2 * layers + 1) * hidden,
        gated=kind not in UNGATED,
        adapted_head="output" if "output" in targets else None,
        holds_scores=bool(config.get("attn_logit_softcapping")),
        is_exact=bool(shapes),
    )


def describe_shape(shape: Shape) -> str:
    """Say what a model is in a line."""
    size = shape.num_parameters
    words = f"{size / 1e9:.2f} billion" if size >= 1e8 else f"{size / 1e6:.2f} million"
    return (
        f"{words} weights: {shape.layers} layers, {shape.hidden:,} wide, {shape.vocabulary:,} tokens in the vocabulary"
    )


def _size(config: Mapping[str, Any], source: str, *keys: str) -> int:
    value = first_of(config, *keys)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"The config.json of {source} does not say {keys[0]}.", "Download or copy the model again.")
    return value


def _has_head(shapes: Iterable[str]) -> bool:
    return any(name.endswith(head) for name in shapes for head in HEADS)


def _count_linears(shapes: Mapping[str, tuple[int, ...]], hidden: int, share: float, fused: bool) -> list[Linear]:
    """Count the matrices inside layers, by last name and size; those of an image encoder are left out."""
    counts: dict[tuple[str, int, int, Place, bool], int] = {}
    for name, shape in shapes.items():
        if not name.endswith("weight") or EYES.search(name) or not LAYER.search(name):
            continue
        expert = ".experts." in name
        for outputs, inputs, times in _matrices(shape, expert):
            last = name.removesuffix(".weight").rpartition(".")[2]
            key = (last, outputs, inputs, _place(name, last, outputs, hidden), expert)
            counts[key] = counts.get(key, 0) + times
    return [
        Linear(last, outputs, inputs, count, place, share if expert else 1.0, expert and fused)
        for (last, outputs, inputs, place, expert), count in counts.items()
    ]


def _matrices(shape: tuple[int, ...], expert: bool) -> list[tuple[int, int, int]]:
    """Return (outputs, inputs, how many): one of a matrix, as many as there are experts of a fused weight."""
    if len(shape) == 2:
        return [(shape[0], shape[1], 1)]
    return [(shape[1], shape[2], shape[0])] if len(shape) == 3 and expert else []


def _place(name: str, last: str, outputs: int, hidden: int) -> Place:
    is_attention = "attn" in name or "attention" in name.rpartition(".layers.")[2]
    is_out = last in OUTS and outputs == hidden
    if is_attention:
        return "attention_out" if is_out else "attention"
    return "mlp_out" if is_out else "mlp"


def _usual_linears(
    kind: str, layers: int, hidden: int, queries: int, keys: int, inner: int, experts: int, chosen: int
) -> list[Linear]:
    """Return the matrices that models of a kind have, under the names of `model.kind`."""
    targets = KINDS[kind].targets if kind in KINDS else ()
    gate = 1 if kind in UNGATED else 2
    fused_qkv = next(
        (name for name in ("wqkv", "W_pack", "query_key_value", "c_attn", "qkv_proj") if name in targets), ""
    )
    if fused_qkv:
        rows = [(fused_qkv, queries + 2 * keys)]
    else:
        rows = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)]
    found = [Linear(name, outputs, hidden, layers, "attention") for name, outputs in rows]
    out = next((name for name in ("wo", "dense", "c_proj", "o_proj") if name in targets), "o_proj")
    found.append(Linear(out, hidden, queries, layers, "attention_out"))
    if "w3" in targets:
        ups, down = [("w1", inner), ("w3", inner)], "w2"
    elif kind == "qwen":
        ups, down = [("w1", inner), ("w2", inner)], "c_proj"
    elif "dense_h_to_4h" in targets:
        ups, down = [("dense_h_to_4h", gate * inner)], "dense_4h_to_h"
    elif "c_fc" in targets:
        ups, down = [("c_fc", inner)], "c_proj"
    elif "gate_up_proj" in targets:
        ups, down = [("gate_up_proj", 2 * inner)], "down_proj"
    else:
        ups, down = [("gate_proj", inner), ("up_proj", inner)], "down_proj"
    count, share = layers * max(experts, 1), chosen / experts if experts else 1.0
    is_fused = bool(experts) and not is_built_in(kind)
    found += [Linear(name, outputs, hidden, count, "mlp", share, is_fused) for name, outputs in ups]
    return [*found, Linear(down, hidden, inner, count, "mlp_out", share, is_fused)]
