"""Linear layers of a model: what one is, and which those of a kind have when no weights are there to count."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from xtuner.checkpoint.kind import KINDS, is_built_in

Place = Literal["attention", "attention_out", "mlp", "mlp_out"]
"""Where the input of a linear layer comes from: a norm, the attention, a norm, the inside of the MLP."""

UNGATED = ("bloom", "falcon", "gpt_bigcode", "starcoder2", "gpt2", "gpt_neox", "phi", "opt")


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
class Latent:
    """Attention with keys and values of a low rank (MLA, https://arxiv.org/abs/2405.04434): sizes as in config.json."""

    kv_rank: int
    q_rank: int
    """0: queries are one product."""
    plain: int
    """Numbers of a head's query and key without a position."""
    rotated: int
    value: int
    """Numbers of a head's value."""


@dataclass(frozen=True)
class Experts:
    """An MLP of several experts, of which each token is given to some."""

    count: int
    chosen: int
    width: int
    shared: int
    """Width of what every token runs through beside them; 0: nothing."""
    layers: int
    """Layers that have them; the others have one MLP."""


@dataclass(frozen=True)
class Widths:
    """What the matrices of a model follow from."""

    kind: str
    layers: int
    hidden: int
    queries: int
    """Of all heads together, as are `keys`."""
    keys: int
    inner: int
    """Of an MLP without experts."""
    heads: int
    latent: Latent | None = None
    experts: Experts | None = None


def usual_linears(widths: Widths) -> list[Linear]:
    """Return the matrices that models of a kind have, under the names of `checkpoint.kind`."""
    return [*_attention(widths), *_mlps(widths)]


def _attention(widths: Widths) -> Iterator[Linear]:
    layers, hidden, latent = widths.layers, widths.hidden, widths.latent
    if latent is not None:
        size = latent.plain + latent.rotated
        if latent.q_rank:
            yield Linear("q_a_proj", latent.q_rank, hidden, layers, "attention")
            yield Linear("q_b_proj", widths.heads * size, latent.q_rank, layers, "attention")
        else:
            yield Linear("q_proj", widths.heads * size, hidden, layers, "attention")
        yield Linear("kv_a_proj_with_mqa", latent.kv_rank + latent.rotated, hidden, layers, "attention")
        yield Linear("kv_b_proj", widths.heads * (latent.plain + latent.value), latent.kv_rank, layers, "attention")
        yield Linear("o_proj", hidden, widths.heads * latent.value, layers, "attention_out")
        return
    targets = _targets(widths.kind)
    fused = next((name for name in ("wqkv", "W_pack", "query_key_value", "c_attn", "qkv_proj") if name in targets), "")
    if fused:
        yield Linear(fused, widths.queries + 2 * widths.keys, hidden, layers, "attention")
    else:
        for name, outputs in (("q_proj", widths.queries), ("k_proj", widths.keys), ("v_proj", widths.keys)):
            yield Linear(name, outputs, hidden, layers, "attention")
    out = next((name for name in ("wo", "dense", "c_proj", "o_proj") if name in targets), "o_proj")
    yield Linear(out, hidden, widths.queries, layers, "attention_out")


def _mlps(widths: Widths) -> Iterator[Linear]:
    experts = widths.experts
    if experts is None:
        yield from _mlp(widths, widths.inner, widths.layers)
        return
    if widths.layers > experts.layers:
        yield from _mlp(widths, widths.inner, widths.layers - experts.layers)
    if experts.shared:
        yield from _mlp(widths, experts.shared, experts.layers)
    yield Linear("gate", experts.count, widths.hidden, experts.layers, "mlp")
    fused, share = not is_built_in(widths.kind), experts.chosen / experts.count
    yield from _mlp(widths, experts.width, experts.layers * experts.count, share, fused)


def _mlp(widths: Widths, inner: int, count: int, share: float = 1.0, fused: bool = False) -> Iterator[Linear]:
    """Yield the matrices of `count` MLPs of the width `inner`."""
    targets, hidden = _targets(widths.kind), widths.hidden
    gate = 1 if widths.kind in UNGATED else 2
    if "w3" in targets:
        ups, down = [("w1", inner), ("w3", inner)], "w2"
    elif widths.kind == "qwen":
        ups, down = [("w1", inner), ("w2", inner)], "c_proj"
    elif "dense_h_to_4h" in targets:
        ups, down = [("dense_h_to_4h", gate * inner)], "dense_4h_to_h"
    elif "c_fc" in targets:
        ups, down = [("c_fc", inner)], "c_proj"
    elif "gate_up_proj" in targets:
        ups, down = [("gate_up_proj", 2 * inner)], "down_proj"
    else:
        ups, down = [("gate_proj", inner), ("up_proj", inner)][2 - gate :], "down_proj"
    for name, outputs in ups:
        yield Linear(name, outputs, hidden, count, "mlp", share, fused)
    yield Linear(down, hidden, inner, count, "mlp_out", share, fused)


def _targets(kind: str) -> tuple[str, ...]:
    return KINDS[kind].targets if kind in KINDS else ()
