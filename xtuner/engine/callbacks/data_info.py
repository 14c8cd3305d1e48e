"""Says what is going to be learned, before anything is."""

from collections.abc import Sequence
from typing import Any

from xtuner.dataset.store import PackedDataset
from xtuner.engine.run import Callback, Run
from xtuner.log import LOGGER

MOST_HEAD, MOST_TAIL = 300, 100
"""Tokens of the beginning and the end of a sample that are shown: a screen full, with the template's marks."""


class DataInfo(Callback):
    """Number of training samples (packs count as one), and the first sample as the model sees it."""

    def before_train(self, run: Run) -> None:
        """Log both, for validation as well where there is one."""
        _show(run.tokenizer, run.data.train, "train")
        if run.data.validation is not None:
            _show(run.tokenizer, run.data.validation, "eval")


def _show(tokenizer: Any, packs: PackedDataset, part: str) -> None:
    first = packs[0]
    ids = list(first.input_ids[: first.lengths[0]])
    LOGGER.info("Num %s samples %d", part, len(packs))
    LOGGER.info("%s example:\n%s", part, render_example(tokenizer, ids))


def render_example(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of a sample; of a long one the beginning and the end, and how many tokens are between."""
    num_hidden = len(ids) - MOST_HEAD - MOST_TAIL
    if num_hidden <= 0:
        return str(tokenizer.decode(ids))
    head, tail = tokenizer.decode(ids[:MOST_HEAD]), tokenizer.decode(ids[-MOST_TAIL:])
    return f"{head}\n... {num_hidden:,} tokens are not shown ...\n{tail}"
