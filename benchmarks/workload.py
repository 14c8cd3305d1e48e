"""What is trained in a benchmark: shapes of models, sizes of micro-batches, lengths of chat samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rope_theta": 5e5,
    },
    "llama2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    "internlm2-1.8b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 92544,
        "rope_theta": 1e6,
    },
    "toy": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 768,
    },
}
"""Sizes as a config.json of Llama spells them; `toy` is for trying the commands on a CPU."""

VOCABULARY = {name: shape["vocab_size"] for name, shape in SHAPES.items()}
RANK = 64
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TRAINED_WHOLE = ("full",)
CHAT = "chat"
LONGEST = "longest"
CHAT_MEDIAN, CHAT_SIGMA = 190, 0.95
"""Lengths of chat samples are log-normal: the mean is 300 tokens, one in a hundred has more than 1,700."""
CHAT_SHORTEST, CHAT_LONGEST = 16, 4096


@dataclass(frozen=True)
class Case:
    """TOOL:METHOD:SHAPE:SIZE[,SIZE...][:SETTING=VALUE...]; every size is a row of the table."""

    tool: str
    method: str
    shape: str
    sizes: tuple[str, ...]
    settings: dict[str, str]

    def named(self, size: str) -> str:
        """Return the words of the case with one of its sizes."""
        words = [self.tool, self.method, self.shape, size, *(f"{key}={value}" for key, value in self.settings.items())]
        return ":".join(words)


@dataclass(frozen=True)
class Lap:
    """One step: `tokens` that were real, of `computed` with the padding."""

    seconds: float
    tokens: int
    computed: int
    loss: float


def read_case(text: str) -> Case:
    """Read the words of a case."""
    tool, method, shape, sizes, *settings = text.split(":")
    pairs = (setting.partition("=") for setting in settings)
    return Case(tool, method, shape, tuple(sizes.split(",")), {key: value for key, _, value in pairs})


def num_rows(size: str) -> int:
    """Return the samples of a micro-batch: `2x4096` and `chat2` have two."""
    return int(size.removeprefix(CHAT)) if size.startswith(CHAT) else int(size.split("x")[0])


def longest_row(size: str) -> int:
    """Return the tokens of the longest sample that a size may have."""
    return CHAT_LONGEST if size.startswith(CHAT) else int(size.split("x")[1])


def chat_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Draw the tokens of `count` chat samples; (count,), the same for every tool."""
    drawn = np.random.default_rng(seed).lognormal(np.log(CHAT_MEDIAN), CHAT_SIGMA, count)
    return np.clip(drawn.round(), CHAT_SHORTEST, CHAT_LONGEST).astype(np.int64)


def micro_batches(size: str, steps: int) -> Iterator[list[int]]:
    """Yield the lengths of the samples of each micro-batch, in the order in which the data has them."""
    rows = num_rows(size)
    if size.startswith(CHAT):
        yield from chat_lengths(rows * steps).reshape(steps, rows).tolist()
    else:
        yield from [[longest_row(size)] * rows] * steps


def packed(size: str, steps: int, pack_length: int) -> list[list[int]]:
    """Return the same samples in packs of `pack_length` tokens, as our runs put them together; at most `steps`."""
    from xtuner.dataset.pack import best_fit

    lengths = chat_lengths(num_rows(size) * steps)
    packs = best_fit(lengths, pack_length, seed=0)
    return [lengths[packs[index]].tolist() for index in range(min(steps, len(packs)))]


def flops(shape: str, lengths: list[int], method: str) -> float:
    """Return the arithmetic that training on samples of `lengths` needs.

    4 N a token where weights are frozen, 6 N where they are trained, and causal attention; neither recomputation nor
    adapters count.
    """
    s = SHAPES[shape]
    hidden, head = s["hidden_size"], s["hidden_size"] // s["num_attention_heads"]
    per_layer = 2 * hidden * hidden + 2 * hidden * head * s["num_key_value_heads"] + 3 * hidden * s["intermediate_size"]
    weights = s["num_hidden_layers"] * per_layer + s["vocab_size"] * hidden
    attention = 3 * 2 * hidden * s["num_hidden_layers"]
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    return (6.0 if method in TRAINED_WHOLE else 4.0) * weights * tokens + attention * squares
