"""Our attention function behind transformers' `AttentionInterface`, and the proof that a model uses it right."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from xtuner.errors import UserError
from xtuner.ops.attention import capped_attention, causal_attention, masked_attention, packed_attention
from xtuner.ops.packing import Packing

PACKED = "xtuner_packed"
"""The name under which models ask for the function: `attn_implementation=PACKED`."""

UNKNOWN_FEATURES = {
    "position_bias": "a position bias",
}
UNPACKED = "Train it one sample a row: data.pack=false loop.batch_size=1"
LARGEST_DIFFERENCE = 0.2
"""Share of the logits' spread by which two ways of computing attention may differ: half precision makes 0.01, and some
more where a token goes to another expert for it; a way that leaves something out, more than this."""

PROBE_LENGTHS = [5, 1, 7]

LIMITED = {"sliding_attention", "chunked_attention"}
"""Layers that do not look back to the beginning, as transformers calls them."""

WATCHED = "xtuner_watched"
"""The name of the same function while it is watched."""


def wants_borders(packing: Packing, model: PreTrainedModel) -> bool:
    """Whether `model` is told where the segments of a row begin.

    A row that is one segment is a plain sequence, which models understand that know nothing of packing. Models that
    are known to take packs get its borders too, if our function reads them: so all rows run the same kernels.
    """
    several = packing.cu_seqlens.numel() != 2
    return several or (getattr(model, "takes_packs", False) and model.config._attn_implementation == PACKED)


def packing_arguments(packing: Packing, model: PreTrainedModel) -> dict[str, Any]:
    """Return the keyword arguments by which `model` passes segment borders down to the attention function.

    With our function goes a mask without elements, which nobody reads: transformers takes it for one that is ready,
    and does not look for borders in the positions, for which the host would wait for the card.
    """
    borders: dict[str, Any] = {
        "cu_seq_lens_q": packing.cu_seqlens,
        "cu_seq_lens_k": packing.cu_seqlens,
        "max_length_q": packing.max_seqlen,
        "max_length_k": packing.max_seqlen,
    }
    if model.config._attn_implementation == PACKED:
        borders["attention_mask"] = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=packing.cu_seqlens.device)
    return borders


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function models call: `query` (B, H, T, d), `key` and `value` (B, G, S, d); returns (B, T, H, d).

    With `cu_seq_lens_q` the row is packed; with `attention_mask` (B, 1, T, S) that mask holds; with neither the
    attention is causal, behind a cache if there are more keys than queries. `softcap` bounds the scores, `s_aux` (H,)
    are attention sinks.
    """
    for feature, words in UNKNOWN_FEATURES.items():
        if kwargs.get(feature) is not None:
            raise UserError(
                f"The attention of this model has {words}, which packed attention does not know.",
                "Set model.attention: eager (slower, and memory grows with the square of the length).",
            )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    dropout = dropout if module.training else 0.0
    query, key, value = _same_dtype(query, key, value)
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    options: dict[str, Any] = {"scale": scale, "dropout": dropout, "softcap": softcap, "sinks": s_aux}
    if cu_seq_lens_q is not None and causal and query.shape[2] == key.shape[2]:
        assert max_length_q is not None
        mixed = packed_attention(query, key, value, cu_seq_lens_q, max_length_q, window=sliding_window, **options)
    elif attention_mask is None and causal:
        mixed = causal_attention(query, key, value, window=sliding_window, **options)
    elif softcap is not None or s_aux is not None:
        mixed = capped_attention(query, key, value, attention_mask, **options)
    else:
        mixed = masked_attention(query, key, value, attention_mask, scale=scale, dropout=dropout)
    return mixed.transpose(1, 2), None


def mask(q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Make the mask for `attend`: none where it knows better (no padding, no cache), else the one of SDPA.

    `use_vmap` marks a pattern of the model's own, for example image tokens that see each other.
    """
    if attention_mask is None and q_length == kv_length and not kwargs.get("use_vmap"):
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs)


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Prove on three short segments that packed logits equal those of each segment alone; the model is marked
    `takes_packs` then.

    What packing changes is compared with what a leak between the segments would change, so the answer does not
    hang on the dtype. Costs five forward passes of a few tokens.

    Raises:
        UserError: they differ, so the model must not be trained with several samples in a row.
    """
    device, vocabulary = model.device, model.config.get_text_config().vocab_size
    rows = [torch.arange(n, device=device).mul(37).add(11).remainder(vocabulary)[None] for n in PROBE_LENGTHS]
    row = torch.cat(rows, dim=1)
    positions = torch.cat([torch.arange(n, device=device) for n in PROBE_LENGTHS])[None]
    borders = packing_arguments(Packing.from_lengths(PROBE_LENGTHS).to(device), model)
    was_training = model.training
    model.eval()
    try:
        alone = torch.cat([model(part, use_cache=False).logits for part in rows], dim=1).float()
        packed = model(row, position_ids=positions, use_cache=False, **borders).logits.float()
        leaking = model(row, use_cache=False).logits.float()
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"This model does not take packed rows: {_first_line(error)}.", UNPACKED) from error
    finally:
        model.train(was_training)
    if (packed - alone).norm() > 0.5 * (leaking - alone).norm():
        raise UserError("Samples packed into one row would see each other in this model.", UNPACKED)
    model.takes_packs = True  # type: ignore[assignment]


@torch.no_grad()
def check_attention(model: PreTrainedModel) -> None:
    """Prove on a short row that the attention which was chosen computes what the model's own formula (eager) does.

    Windows of real models are longer than such a row: `mask_window` of the model becomes the shortest one of which our
    function is not told (None: there is none), for `check_windows`.

    Raises:
        UserError: it leaves something out, as SDPA does with a soft cap in some versions of transformers.
    """
    chosen = model.config._attn_implementation
    if chosen in (None, "eager") or not model._supports_attention_backend:
        return  # the formula itself, or a class that cannot change to it
    config = model.config.get_text_config()
    name = "packed" if chosen == PACKED else chosen
    problem = UserError(f"The {name} attention leaves out something of this model's own.", "Set model.attention=eager")
    if chosen == "sdpa" and getattr(config, "attn_logit_softcapping", None) is not None:
        raise problem  # transformers 5.17 computes without it; with few tokens that is hardly to be seen
    vocabulary = config.vocab_size
    row = torch.arange(sum(PROBE_LENGTHS), device=model.device).mul(37).add(11).remainder(vocabulary)[None]
    was_training = model.training
    model.eval()
    asked, told = _watch_windows()
    try:
        if chosen == PACKED:
            model.set_attn_implementation(WATCHED)
        found = model(row, use_cache=False).logits.float()
        model.set_attn_implementation("eager")
        expected = model(row, use_cache=False).logits.float()
    finally:
        model.set_attn_implementation(chosen)
        model.train(was_training)
    kinds = getattr(config, "layer_types", None)  # some ask for a mask that no layer takes
    limited = kinds is None or not LIMITED.isdisjoint(kinds)
    model.mask_window = min(asked) if asked and limited and not told else None  # type: ignore[assignment]
    spread = (expected - expected.mean(-1, keepdim=True)).norm()
    if not (found - expected).norm() <= LARGEST_DIFFERENCE * spread:
        raise problem


def check_windows(model: PreTrainedModel, max_length: int) -> None:
    """Refuse samples of up to `max_length` tokens that are longer than a window of which our function is not told.

    Raises:
        UserError: the model puts a window (Phi-3.5-MoE, Qwen2-MoE) or chunks (Llama 4) into its mask alone.
    """
    window = getattr(model, "mask_window", None)
    if window is not None and window < max_length:
        raise UserError(
            f"Layers of this model look at {window} tokens at most, and packed attention is not told of it.",
            f"Set data.max_length={window}, or model.attention=sdpa",
        )


def _watch_windows() -> tuple[set[int], set[int]]:
    """Register `attend` and `mask` as WATCHED too; return the windows that masks are asked for from then on, and those
    that attention is told of."""
    asked: set[int] = set()
    told: set[int] = set()

    def watch(function: Callable[..., Any], name: str, seen: set[int]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get(name):
                seen.add(kwargs[name])
            return function(*args, **kwargs)

        return watched

    AttentionInterface.register(WATCHED, watch(attend, "sliding_window", told))
    AttentionMaskInterface.register(WATCHED, watch(mask, "local_size", asked))
    return asked, told


def attention_of(model_class: type[PreTrainedModel] | None, wanted: str, *, train: bool) -> str | None:
    """Return the `attn_implementation` for a model of `model_class` (None: unknown), or None for the library's choice.

    Ours is asked for in training; a class that does not call attention through `AttentionInterface` cannot have it.
    """
    if wanted != "auto":
        return wanted
    ours = train and (model_class is None or model_class._supports_attention_backend)
    return PACKED if ours else None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _same_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bring the three to one dtype: that of autocast, else the value's (rotary tables may have widened the others)."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, mask)
