"""Says what is going to be learned, before anything is."""

from typing import Any

from xtuner.dataset.store import PackedDataset
from xtuner.engine.run import Callback, Run
from xtuner.log import LOGGER


class DataInfo(Callback):
    """Number of training samples (packs count as one), and the first sample as the model sees it."""

    def before_train(self, run: Run) -> None:
        """Log both, for validation as well where there is one."""
        _show(run.tokenizer, run.data.train, "train")
        if run.data.validation is not None:
            _show(run.tokenizer, run.data.validation, "eval")


def _show(tokenizer: Any, packs: PackedDataset, part: str) -> None:
    first = packs[0]
    LOGGER.info("Num %s samples %d", part, len(packs))
    LOGGER.info("%s example:\n%s", part, tokenizer.decode(list(first.input_ids[: first.lengths[0]])))
