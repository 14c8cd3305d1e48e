"""Owns the training of the built-in model from random weights: batches of samples of like length, AdamW, cosine."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tiny_model.encode import Tokens
from tiny_model.settle import settle
from xtuner.dataset.batch import IGNORE
from xtuner.model.families.internlm2 import InternLM2Config, InternLM2ForCausalLM

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 576,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rope_theta": 10000,
    "bias": False,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
}
ROUND = 16
"""Lengths of batches are multiples of this, so that few shapes occur."""
WARMUP = 0.02
WEIGHT_DECAY = 0.05


def make_batches(tokens: Tokens, batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
    """Yield for ever the sample numbers of one batch: about `batch_tokens` tokens, samples of like length together."""
    lengths = np.diff(tokens.borders)
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(lengths))
        window = max(1, 64 * batch_tokens // int(lengths.mean()))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(lengths[part], kind="stable")]
            first = 0
            for last in range(1, len(part) + 1):
                if last == len(part) or (last + 1 - first) * _rounded(lengths[part[last]]) > batch_tokens:
                    batches.append(part[first:last])
                    first = last
        for number in random.permutation(len(batches)):
            yield batches[number]


def _rounded(length: int) -> int:
    return -(-int(length) // ROUND) * ROUND


def to_tensors(tokens: Tokens, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return ids and labels (B, T), padded on the right; labels are shifted, `labels[:, t]` follows `ids[:, t]`."""
    starts, lengths = tokens.borders[rows], tokens.borders[rows + 1] - tokens.borders[rows]
    places = np.arange(_rounded(lengths.max()))
    inside = places < lengths[:, None]
    at = np.where(inside, starts[:, None] + places, 0)
    ids = np.where(inside, tokens.ids[at], 0).astype(np.int64)
    labels = np.full_like(ids, IGNORE)
    labels[:, :-1] = np.where(inside[:, 1:] & tokens.trained[at][:, 1:], ids[:, 1:], IGNORE)
    return torch.from_numpy(ids), torch.from_numpy(labels)


def _rate(step: int, steps: int) -> float:
    warmup = max(1, int(steps * WARMUP))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_model(
    tokens: Tokens, folder: Path, *, vocab_size: int, steps: int, batch_tokens: int, lr: float, seed: int, device: str
) -> None:
    """Train and write config.json and model.safetensors (bfloat16) into `folder`.

    Right-padded rows need no mask under causal attention: nothing looks at what comes after it.
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    config = InternLM2Config(vocab_size=vocab_size, attn_implementation="sdpa", **SIZES)
    model = InternLM2ForCausalLM(config).to(device).train()
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.97),
        fused=device != "cpu",
    )
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters, {steps} steps", flush=True)
    batches = make_batches(tokens, batch_tokens, seed)
    began, seen = time.monotonic(), 0.0
    for step in range(steps):
        ids, labels = (tensor.to(device, non_blocking=True) for tensor in to_tensors(tokens, next(batches)))
        for group in optimizer.param_groups:
            group["lr"] = lr * _rate(step, steps)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.output(hidden[labels != IGNORE])
        loss = functional.cross_entropy(logits.float(), labels[labels != IGNORE])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += ids.numel()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            seconds = time.monotonic() - began
            print(
                f"step {step + 1}: loss {loss.item():.4f}, {seen / seconds:,.0f} tokens/s, {seconds:.0f} s", flush=True
            )
    model.config.use_cache = True
    model.to("cpu", torch.bfloat16).eval().save_pretrained(folder)
    settle(folder)
