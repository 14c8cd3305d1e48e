"""Causal attention over packed rows: every segment sees itself only."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

MAX_VARLEN_HEAD = 256
MAX_CUDNN_HEAD = 128
LEAST_CUDNN = 128
"""cuDNN gets lengths that are multiples of this, so that not every row needs a plan of its own."""


def eager_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The formula itself, scores in fp32 (https://arxiv.org/abs/1706.03762); the signature is transformers'.

    `query` (B, H, T, d), `key` and `value` (B, G, S, d) with H a multiple of G, `attention_mask` (B, 1, T, S) is
    added. Returns (B, T, H, d) and the weights (B, H, T, S).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query.float() @ key.float().transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1).to(query.dtype)
    weights = functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


def causal_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Return (T, S) True where a query may look: at keys up to its own place, the last query standing at the last key.

    `window`: at most this many keys, the query's own included.
    """
    query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    key = torch.arange(num_keys, device=device)[None]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend causally, the last query standing at the last key (so a prompt may follow a cache).

    `query` (B, H, T, d), `key` (B, G, S, d), `value` (B, G, S, e); `softcap` and `sinks` as in `capped_attention`;
    returns (B, H, T, e).
    """
    queries, keys = query.shape[2], key.shape[2]
    if softcap is not None or sinks is not None:
        seen = causal_mask(queries, keys, window, query.device)
        return capped_attention(query, key, value, seen, scale=scale, dropout=dropout, softcap=softcap, sinks=sinks)
    mask = None
    if (window is not None and keys > window) or 1 < queries < keys:
        mask = causal_mask(queries, keys, window, query.device)
    causal = True if mask is None and queries > 1 else False  # noqa: SIM210  # a compiler would pass a symbol on
    with _fastest_kernels(query, key, value, mask):
        return masked_attention(query, key, value, mask, causal=causal, scale=scale, dropout=dropout)


def _fastest_kernels(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> AbstractContextManager[None]:
    """Prefer cuDNN's kernel on Hopper and later, where it takes half the time of FlashAttention 2.

    It plans anew for every shape, for some 70 ms, so only for lengths that come again and again in packed rows.
    """
    suits = (
        mask is None
        and _is_half_on_card(query, key, value, (9, 0))
        and query.shape[2] == key.shape[2]
        and query.shape[2] >= LEAST_CUDNN
        and query.shape[2] % LEAST_CUDNN == 0
        and query.shape[-1] <= MAX_CUDNN_HEAD
    )
    if not suits:
        return nullcontext()
    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True)


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attend where `mask` (B, 1, T, S) or (T, S) is True; shapes as in `causal_attention`.

    On a GPU only the FlashAttention kernel shares keys among heads itself; for the others they are repeated, else
    the scores would be held in full.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.is_cuda and (mask is not None or query.dtype == torch.float32):
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=True if query.shape[1] != key.shape[1] else False,  # noqa: SIM210  # as above
    )


def capped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend where `mask` is True, with scores squeezed into +-softcap (Gemma 2, https://arxiv.org/abs/2408.00118)
    or one more score per head that takes weight and gives nothing (`sinks` (H,), gpt-oss,
    https://arxiv.org/abs/2508.10925).

    Shapes as in `masked_attention`. No fused kernel knows these, so the scores (B, H, T, S) are held in full; in a
    packed row they are those of one segment at a time.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        extra = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, extra], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = functional.dropout(weights[..., : key.shape[2]], dropout, dropout > 0)
    return weights @ value


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float,
    window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend causally within every segment of one packed row.

    `query` (1, H, T, d), `key` (1, G, T, d), `value` (1, G, T, e), `cu_seqlens` (S + 1,) int32 as in
    `Packing`, `softcap` and `sinks` as in `capped_attention`; returns (1, H, T, e). On a GPU with half precision one
    variable-length kernel does it (`torch.nn.attention.varlen`, FlashAttention, https://arxiv.org/abs/2307.08691);
    elsewhere each segment is attended by itself, which on a CPU beats a (T, T) mask in time and memory.
    """
    assert query.shape[0] == 1, "a packed batch is one row"
    windowed = window is not None and window < max_seqlen
    plain = dropout == 0 and softcap is None and sinks is None
    num_segments = cu_seqlens.shape[0] - 1
    if plain and num_segments * max_seqlen == query.shape[2] and max_seqlen % LEAST_CUDNN == 0:
        # all segments have one length, so they are a batch
        q, k, v = (states.unflatten(2, (num_segments, max_seqlen))[0].transpose(0, 1) for states in (query, key, value))
        return causal_attention(q, k, v, scale=scale, window=window).transpose(0, 1).flatten(1, 2)[None]
    if plain and _has_varlen_kernel(query, key, value, windowed):
        return _varlen(query, key, value, cu_seqlens, max_seqlen, scale, window)
    attend = partial(causal_attention, scale=scale, window=window, dropout=dropout, softcap=softcap, sinks=sinks)
    if num_segments == 1:  # known without a look at the borders, for which a card would be waited for
        return attend(query, key, value)
    lengths = cu_seqlens.diff().tolist()
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    return torch.cat([attend(q, k, v) for q, k, v in parts], dim=2)


def _is_half_on_card(query: Tensor, key: Tensor, value: Tensor, capability: tuple[int, int]) -> bool:
    """Whether kernels of FlashAttention's kind take these: 16 bits, heads of one size, a card that is new enough."""
    return (
        query.is_cuda
        and query.dtype == key.dtype == value.dtype
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] == value.shape[-1]
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= capability
    )


def _has_varlen_kernel(query: Tensor, key: Tensor, value: Tensor, windowed: bool) -> bool:
    return (
        _is_half_on_card(query, key, value, (8, 0))
        and query.shape[-1] <= MAX_VARLEN_HEAD
        and (not windowed or "window_size" in _varlen_parameters())
    )


@cache
def _varlen_parameters() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, window: int | None
) -> Tensor:
    """Call the kernel; it learned windows and grouped heads after torch 2.10."""
    from torch.nn.attention.varlen import varlen_attn

    known = _varlen_parameters()
    options: dict[str, Any] = {"scale": scale}
    if "window_size" in known:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        options["is_causal"] = True
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    q, k, v = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
    mixed = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **options)
    assert isinstance(mixed, Tensor)
    return mixed.transpose(0, 1)[None]
