"""Sequence parallel: a row is cut among ranks, which exchange heads for tokens around attention.

Ulysses (https://arxiv.org/abs/2309.14509): before attention every rank has all heads of its tokens, in attention all
tokens of its heads. Nothing else in a decoder looks at other tokens, so nothing else changes.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_to_all_single
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from xtuner.dataset.batch import IGNORE, Batch
from xtuner.engine.strategy.world import World
from xtuner.errors import UserError
from xtuner.model.attention import PACKED, attend, mask
from xtuner.model.families.deepseek_moe import DeepseekMoE
from xtuner.model.head import base_model
from xtuner.ops.packing import Packing

NAME = "xtuner_ulysses"
"""The name of the attention that exchanges heads for tokens."""


class Ulysses:
    """`size` neighbouring ranks share every row; with 1 nothing changes.

    `reader`: which of the `readers` groups this rank belongs to.
    """

    def __init__(self, world: World, size: int) -> None:
        """Raises UserError when the ranks cannot be divided into groups of `size`."""
        if size < 1 or world.size % size:
            raise UserError(
                f"sequence_parallel_size is {size}, and there are {world.size} processes.",
                f"Start a multiple of it: NPROC_PER_NODE={max(size, 1)} xtuner train ..., or set it to 1.",
            )
        self.size, self.place = size, world.rank % size
        self.reader, self.readers = world.rank // size, world.size // size
        self.group: dist.ProcessGroup | None = None
        if size > 1:
            groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world.size, size)]
            self.group = groups[self.reader]

    def attach(self, model: nn.Module) -> None:
        """Let the model attend through the exchange.

        Raises:
            UserError: its attention, its heads or its experts do not allow that.
        """
        if self.size == 1:
            return
        inner = base_model(model)
        config = inner.config.get_text_config()
        if config._attn_implementation != PACKED:
            raise UserError(
                f"Sequences of {type(inner).__name__} cannot be spread over cards: its attention is not packed.",
                "Set sequence_parallel_size to 1 (and model.attention to auto).",
            )
        heads = config.num_attention_heads
        if heads % self.size:
            raise UserError(
                f"{heads} attention heads cannot be divided among {self.size} ranks.",
                "Choose a sequence_parallel_size that divides them.",
            )
        if any(isinstance(module, DeepseekMoE) and module.alpha > 0 for module in inner.modules()):
            raise UserError(
                f"{type(inner).__name__} keeps its experts evenly busy within whole sequences, so these cannot be "
                "spread over cards.",
                "Set sequence_parallel_size to 1, or aux_loss_alpha to 0 in the model's config.json.",
            )
        assert self.group is not None
        AttentionInterface.register(NAME, partial(attend_together, group=self.group, size=self.size))
        AttentionMaskInterface.register(NAME, mask)
        inner.set_attn_implementation(NAME)

    def cut(self, batch: Batch) -> Batch:
        """Return this rank's tokens of a row, with the borders of the whole row.

        The row is filled up, with a segment that is not learned, to a multiple of the ranks. There is always a second
        segment, since a row of one is given to models without its borders.
        """
        if self.size == 1:
            return batch
        length = batch.input_ids.shape[1]
        more = -length % self.size
        if more == 0 and batch.packing.cu_seqlens.numel() == 2:
            more = self.size
        borders = batch.packing.cu_seqlens
        if more:
            borders = torch.cat([borders, torch.tensor([length + more], dtype=borders.dtype)])
        own = (length + more) // self.size
        window = slice(self.place * own, (self.place + 1) * own)
        positions = torch.cat([batch.positions, torch.arange(more)[None]], dim=1)
        return replace(
            batch,
            input_ids=functional.pad(batch.input_ids, (0, more))[:, window],
            labels=functional.pad(batch.labels, (0, more), value=IGNORE)[:, window],
            positions=positions[:, window],
            packing=Packing(borders, max(batch.packing.max_seqlen, more)),
        )


def attend_together(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    group: dist.ProcessGroup,
    size: int,
    cu_seq_lens_q: Tensor | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attend` of this rank's part of a packed row: `query` (1, H, T / size, d); returns (1, T / size, H, d).

    Rows without borders (answers of a probe) are whole on every rank, and attended as ever.
    """
    if cu_seq_lens_q is None:
        return attend(module, query, key, value, attention_mask, s_aux=s_aux, **kwargs)
    heads, shared = query.shape[1], key.shape[1]
    times = size // math.gcd(shared, size)  # so that the heads of keys and values can be divided too
    if times > 1:
        key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
    assert heads % key.shape[1] == 0
    query, key, value = (_to_heads(states, group, size) for states in (query, key, value))
    if s_aux is not None:
        s_aux = s_aux.chunk(size)[dist.get_rank(group)]
    mixed, _ = attend(module, query, key, value, None, cu_seq_lens_q=cu_seq_lens_q, s_aux=s_aux, **kwargs)
    return _to_tokens(mixed, group, size), None


def _to_heads(states: Tensor, group: dist.ProcessGroup, size: int) -> Tensor:
    """(1, H, t, d) of own tokens -> (1, H / size, size * t, d) of own heads."""
    _, heads, tokens, width = states.shape
    parts = states[0].reshape(size, heads // size, tokens, width).contiguous()
    swapped = all_to_all_single(torch.empty_like(parts), parts, group=group)
    return swapped.transpose(0, 1).reshape(1, heads // size, size * tokens, width)


def _to_tokens(states: Tensor, group: dist.ProcessGroup, size: int) -> Tensor:
    """(1, T, h, d) of own heads -> (1, T / size, size * h, d) of own tokens."""
    _, tokens, heads, width = states.shape
    parts = states[0].reshape(size, tokens // size, heads, width).contiguous()
    swapped = all_to_all_single(torch.empty_like(parts), parts, group=group)
    return swapped.transpose(0, 1).reshape(1, tokens // size, size * heads, width)
