"""What a plan knows of a model: its sizes, from config.json and the headers of its weights (no torch)."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtuner.checkpoint.describe import HEADS, first_of, read_config, read_header, weight_files
from xtuner.checkpoint.kind import KINDS, TIED, is_built_in
from xtuner.engine.plan.known import LEFT_OUT, find_known
from xtuner.engine.plan.linear import UNGATED, Experts, Latent, Linear, Place, Widths, usual_linears
from xtuner.errors import UserError

__all__ = ["Linear", "Place", "Shape", "describe_shape", "load_shape", "read_shapes", "shape_of"]

OUTS = ("o_proj", "wo", "dense", "c_proj", "out_proj", "down_proj", "dense_4h_to_h", "w2", "fc2")
"""Layers that lead back to the width of the model."""
INNERS = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "moe_intermediate_size")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
MOST = 2**31
"""No size of a model is larger."""
EYES = re.compile(r"(^|\.)(vision_tower|vision_model|visual|vision|multi_modal_projector|mlp1)\.")
LAYER = re.compile(r"\.(\d+)\.")


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
    inside = first_of(config, "text_config", "llm_config")  # of a model that sees; its sizes are in `config` already
    speaks = str(inside.get("model_type") or "") if isinstance(inside, dict) else kind
    config = {key: value for key, value in config.items() if value is not None}
    if speaks != kind:
        config = {**LEFT_OUT.get(speaks, {}), **config}
    hidden = _size(config, source, "hidden_size", "n_embd", "d_model")
    layers = _size(config, source, "num_hidden_layers", "num_layers", "n_layer")
    heads = _size(config, source, "num_attention_heads", "n_head")
    vocabulary = _size(config, source, "padded_vocab_size", "vocab_size")
    key_heads = _key_heads(config, source, kind, heads)
    head_size = _size(config, source, "head_dim", "kv_channels", default=max(1, hidden // heads))
    latent = _latent(config, source)
    if latent is not None:
        key_heads, head_size = heads, latent.plain + latent.rotated
    inner = _size(config, source, *INNERS, default=4 * hidden)
    if kind == "qwen":
        inner //= 2
    experts = _experts(config, source, layers, inner)
    if shapes:
        share = experts.chosen / experts.count if experts else 1.0
        linears = _count_linears(shapes, hidden, share, experts is not None and not is_built_in(kind))
    else:
        widths = Widths(kind, layers, hidden, heads * head_size, key_heads * head_size, inner, heads, latent, experts)
        linears = usual_linears(widths)
    inner = round(sum(x.inputs * x.count * x.share for x in linears if x.place == "mlp_out") / layers) or inner
    tied = bool(config.get("tie_word_embeddings", speaks in TIED)) or bool(shapes and not _has_head(shapes))
    counted = sum(math.prod(shape) for shape in shapes.values())
    matrices = sum(linear.size for linear in linears) + vocabulary * hidden * (1 if tied else 2)
    targets = KINDS[kind].targets if kind in KINDS else ()
    return Shape(
        kind=kind,
        source=source,
        layers=layers,
        hidden=hidden,
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
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


def _size(config: Mapping[str, Any], source: str, *keys: str, default: int | None = None, least: int = 1) -> int:
    """Return the first of `keys` that has a value.

    Raises:
        UserError: none has, and there is no `default`; or it is no size.
    """
    key = next((key for key in keys if config.get(key) is not None), None)
    if key is None:
        if default is None:
            raise UserError(f"The config.json of {source} does not say {keys[0]}.", "Download or copy the model again.")
        return default
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise UserError(
            f"The config.json of {source} says that {key} is {value!r}, which is no size.",
            "Download or copy the model again.",
        )
    return value


def _key_heads(config: Mapping[str, Any], source: str, kind: str, heads: int) -> int:
    """Return how many heads have keys and values of their own."""
    one = config.get("multi_query") is True
    if one and kind == "falcon" and not config.get("new_decoder_architecture"):
        return 1  # its num_kv_heads counts only in the newer form
    keys = ["num_key_value_heads", "multi_query_group_num", "num_kv_heads"]
    if config.get("multi_query_attention") is False:
        keys.remove("multi_query_group_num")
    found = _size(config, source, *keys, default=1 if one else heads)
    if heads % found:
        raise UserError(
            f"The config.json of {source} says that {heads} heads share the keys of {found}, which do not divide them.",
            "Download or copy the model again.",
        )
    return found


def _latent(config: Mapping[str, Any], source: str) -> Latent | None:
    if not config.get("kv_lora_rank"):
        return None
    names = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    plain, rotated, value = (_size(config, source, name) for name in names)
    rank = _size(config, source, "q_lora_rank", default=0, least=0)
    return Latent(_size(config, source, "kv_lora_rank"), rank, plain, rotated, value)


def _experts(config: Mapping[str, Any], source: str, layers: int, inner: int) -> Experts | None:
    """Return what config.json says of experts; the first layers, or some, may have none."""
    count = _size(config, source, *EXPERTS, default=0, least=0)
    if not count:
        return None
    chosen = _size(config, source, "num_experts_per_tok", "moe_topk", default=1)
    if chosen > count:
        raise UserError(
            f"The config.json of {source} gives a token to {chosen} of {count} experts.",
            "Download or copy the model again.",
        )
    width = _size(config, source, "moe_intermediate_size", default=inner)
    many = _size(config, source, "n_shared_experts", default=0, least=0)
    shared = _size(config, source, "shared_expert_intermediate_size", default=many * width, least=0)
    first = _size(config, source, "first_k_dense_replace", default=0, least=0)
    every = _size(config, source, "moe_layer_freq", default=1)
    step = _size(config, source, "decoder_sparse_step", default=1)
    plain = config.get("mlp_only_layers") or []
    has = [
        n >= first and n % every == 0 and (n + 1) % step == 0 and not (isinstance(plain, list) and n in plain)
        for n in range(layers)
    ]
    return Experts(count, chosen, width, shared, sum(has))


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
