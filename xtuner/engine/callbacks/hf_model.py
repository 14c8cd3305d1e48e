"""The trained model as a folder that transformers loads, written when a run ends (HFCheckpointHook of 0.1.x)."""

from pathlib import Path
from typing import Any

from xtuner.checkpoint.folder import fresh_folder
from xtuner.engine.run import Callback, Run
from xtuner.log import LOGGER


class HFModel(Callback):
    """Writes weights, config and tokenizer into `folder`, or `<work dir>/hf_model`.

    A run with LoRA leaves its adapter in `<work dir>/adapter` anyway, and nothing is added to that.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def after_train(self, run: Run) -> None:
        """Write it."""
        if run.spec.model.lora is not None:
            LOGGER.info("The callback hf_model has nothing to add: the adapter is the whole result of this run.")
            return
        folder = Path(self.folder) if self.folder is not None else run.work.folder / "hf_model"
        model: Any = run.model
        weights = run.strategy.gather()

        def write() -> None:
            with fresh_folder(folder) as aside:
                model.save_pretrained(str(aside), state_dict=weights)
                run.tokenizer.save_pretrained(str(aside))

        run.strategy.world.first(write)
        LOGGER.info("The model is in %s", folder)
