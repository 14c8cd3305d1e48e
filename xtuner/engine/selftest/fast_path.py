"""Law 4: on the shapes of this run the fast operations give what the plain ones give."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from xtuner.config.spec import RunSpec
from xtuner.dataset.collate import collate
from xtuner.engine.run import Run
from xtuner.engine.selftest.measure import (
    Measured,
    apart,
    compute_dtype,
    is_exact,
    open_run,
    with_model,
    without_dropout,
    worst,
)
from xtuner.engine.selftest.packing import fullest_pack
from xtuner.engine.step import to_device
from xtuner.model.head import base_model, find_head
from xtuner.ops.attention import causal_mask, eager_attention, packed_attention
from xtuner.ops.linear_cross_entropy import (
    IGNORE,
    cross_entropy_with_grad,
    linear_cross_entropy,
    plain_cross_entropy_with_grad,
    reference_linear_cross_entropy,
)
from xtuner.ops.packing import Packing

LAW = "fast equals plain"
EXACT, NOISE = 1e-5, 3e-2
"""Length of the difference as a share: fp32; half precision."""
EIGHT_BITS = 1e-1
"""Products whose inputs are rounded to 8 bits on one side."""
MOST_TOKENS = 512
OURS = "xtuner."

Tensors = list[Tensor]


def measure_fast_path(spec: RunSpec, folder: Path) -> Iterator[tuple[str, Measured | None]]:
    """Compare layers, loss and attention, forward and backward, with their plain forms; yields as
    `measure_trajectory`."""
    yield "layers, loss and attention", None
    with open_run(without_dropout(spec), folder / "shapes") as run:
        torch.manual_seed(0)
        limit = EXACT if is_exact(run) else NOISE
        lengths = _cropped(fullest_pack(run).lengths)
        eight = spec.model.quant is not None and spec.model.quant.bits == 8
        for shape, layer in _lora_layers(run.model).items():
            found = _compare_lora(run, layer, sum(lengths))
            name = f"adapted layer {shape[1]} x {shape[0]}"
            yield "", Measured(LAW, name, found, EIGHT_BITS if eight else limit)
        yield "", Measured(LAW, f"loss over {find_head(run.model).vocabulary} tokens", _compare_loss(run), limit)
        yield "", Measured(LAW, f"attention over {len(lengths)} samples", _compare_attention(run, lengths), limit)
        on_card = run.strategy.device.type == "cuda"
        if on_card:
            yield "", Measured(LAW, "loss kernel", _compare_kernel(run), limit)
    if on_card and spec.model.quant is None:
        yield "compiled layers", None
        plain = _loss(without_dropout(spec), folder / "plain")
        compiled = _loss(without_dropout(with_model(spec, compile=True)), folder / "compiled")
        yield "", Measured(LAW, "compiled layers", worst([compiled], [plain]), limit)


def _cropped(lengths: list[int]) -> list[int]:
    """Return the lengths of segments that are short enough together for the plain formula."""
    kept: list[int] = []
    for length in lengths:
        kept.append(min(length, MOST_TOKENS - sum(kept)))
        if sum(kept) == MOST_TOKENS:
            break
    return kept


def _lora_layers(model: nn.Module) -> dict[tuple[int, int], Any]:
    """Return one layer of ours for every shape (in, out)."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer) and type(m).__module__.startswith(OURS)]
    return {(layer.in_features, layer.out_features): layer for layer in layers}


def _compare_lora(run: Run, layer: Any, tokens: int) -> float:
    """Compare our layer with PEFT's own forward pass on the same weights."""
    device = run.strategy.device
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    trained = [part[name].weight for part in (layer.lora_A, layer.lora_B) for name in names]
    with torch.no_grad():
        layer.lora_B[names[0]].weight.normal_(std=layer.in_features**-0.5)  # zero at first, which would hide the branch
    inputs = torch.randn(1, tokens, layer.in_features, device=device, requires_grad=True)
    pull = torch.randn(1, tokens, layer.out_features, device=device)
    theirs: Any
    [theirs] = [cls for cls in type(layer).__mro__ if issubclass(cls, LoraLayer)][1:2]

    def results(forward: Callable[[Tensor], Tensor]) -> Tensors:
        def compute() -> Tensors:
            out = forward(inputs)
            return [out, *torch.autograd.grad((out.float() * pull).sum(), trained)]

        return run.strategy.within(compute)

    ours, plain = results(layer), results(lambda rows: theirs.forward(layer, rows))
    return max(apart(one, other) for one, other in zip(ours, plain, strict=True))


def _compare_loss(run: Run) -> float:
    head = find_head(run.model)
    weight: Any = next(head.module.parameters())
    dtype = weight.dtype if weight.is_floating_point() else compute_dtype(run)  # a 4-bit head is stored as bytes
    width = base_model(run.model).config.get_text_config().hidden_size
    hidden = torch.randn(MOST_TOKENS, width, device=weight.device, requires_grad=True)
    labels = torch.randint(head.vocabulary, (MOST_TOKENS,), device=weight.device)
    labels[::3] = IGNORE

    def results(function: Callable[..., Tensor], chunk: int) -> Tensors:
        def compute() -> Tensors:
            loss = function(hidden.to(dtype), head, labels, chunk)
            return [loss, *torch.autograd.grad(loss, hidden)]

        return run.strategy.within(compute)

    ours, plain = results(linear_cross_entropy, 100), results(reference_linear_cross_entropy, 0)
    return max(apart(one, other) for one, other in zip(ours, plain, strict=True))


def _compare_attention(run: Run, lengths: list[int]) -> float:
    """Compare packed attention with the formula and a mask, with the heads of the model."""
    config = base_model(run.model).config.get_text_config()
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    dtype = compute_dtype(run)
    device, total = run.strategy.device, sum(lengths)
    states = [torch.randn(1, count, total, size, device=device, dtype=dtype) for count in (heads, groups, groups)]
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    seen = (segment[:, None] == segment) & causal_mask(total, total, None, device)
    bias = torch.zeros(total, total, device=device).masked_fill(~seen, float("-inf"))[None, None]
    packing = Packing.from_lengths(lengths).to(device)
    pull = torch.randn(1, heads, total, size, device=device)

    def results(function: Callable[[Tensors], Tensor], given: Tensors) -> Tensors:
        given = [tensor.detach().requires_grad_() for tensor in given]
        out = function(given)
        return [out, *torch.autograd.grad((out.float() * pull).sum(), given)]

    def fast(given: Tensors) -> Tensor:
        query, key, value = given
        return packed_attention(query, key, value, packing.cu_seqlens, packing.max_seqlen, scale=size**-0.5)

    def plain(given: Tensors) -> Tensor:
        query, key, value = given
        return eager_attention(nn.Module(), query, key, value, bias, size**-0.5)[0].transpose(1, 2)

    ours, formula = results(fast, states), results(plain, [tensor.float() for tensor in states])
    return max(apart(one, other) for one, other in zip(ours, formula, strict=True))


def _compare_kernel(run: Run) -> float:
    """Compare the fused loss with torch's operations on logits of this vocabulary."""
    dtype = compute_dtype(run)
    vocabulary = find_head(run.model).vocabulary
    logits = torch.randn(256, vocabulary, device=run.strategy.device, dtype=dtype) * 3
    targets = torch.randint(vocabulary, (256,), device=logits.device)
    pairs = zip(
        cross_entropy_with_grad(logits, targets), plain_cross_entropy_with_grad(logits.clone(), targets), strict=True
    )
    return max(apart(one, other) for one, other in pairs)


def _loss(spec: RunSpec, folder: Path) -> float:
    """Return the loss of the first pack before any step."""
    with open_run(spec, folder) as run:
        batch = to_device(collate([run.data.train[0]], (0,)), run.strategy.device)
        loss = run.strategy.loss(run.objective, run.model, batch)
        return float(loss.total / loss.weight)
