"""TRL's SFTTrainer as a contender: on its own, and with Unsloth's model; it has its own batches and loop."""

import tempfile
from typing import Any

import torch

from benchmarks.contender import lora_config, plain_model, unsloth_model
from benchmarks.device import between, device, mark
from benchmarks.workload import TRAINED_WHOLE, VOCABULARY, Case, Lap, longest_row, micro_batches, num_rows

TOOLS = ("trl", "unsloth-trl")


def train(case: Case, folder: str, size: str, steps: int) -> list[Lap]:
    """Train `steps` steps on the samples of `size`; returns a lap for each.

    The setting `packing` is "none" (samples of a batch are padded) or a strategy of TRL's; packs are as long as the
    longest sample may be, and a micro-batch has `rows` of them.
    """
    from datasets import Dataset

    if case.tool == "unsloth-trl":
        model, tokenizer = unsloth_model(case, folder, longest_row(size))
    else:
        from transformers import AutoTokenizer

        model, tokenizer = plain_model(case, folder), AutoTokenizer.from_pretrained(folder)
    from trl import SFTConfig, SFTTrainer

    packing = case.settings.get("packing", "none")
    rows = int(case.settings.get("rows", num_rows(size)))
    generator = torch.Generator().manual_seed(0)
    lengths = [length for micro in micro_batches(size, steps) for length in micro]
    vocabulary = VOCABULARY[case.shape]
    samples = [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    with tempfile.TemporaryDirectory() as place:
        settings: dict[str, Any] = {
            "output_dir": place,
            "per_device_train_batch_size": rows,
            "max_steps": steps,
            "max_length": longest_row(size),
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch_fused",
            "bf16": device() == "cuda",
            "use_cpu": device() == "cpu",
            "packing": packing != "none",
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        if packing != "none":
            settings["packing_strategy"] = packing
        adapter = case.tool == "trl" and case.method not in TRAINED_WHOLE
        trainer = timed(SFTTrainer)(
            model=model,
            args=SFTConfig(**settings),
            train_dataset=Dataset.from_dict({"input_ids": samples}),
            processing_class=tokenizer,
            **({"peft_config": lora_config()} if adapter else {}),
        )
        trainer.train()
        laps: list[Lap] = trainer.end()
    return laps


def timed(trainer: type) -> Any:
    """Return a trainer that notes when each step began and what it read."""

    class Timed(trainer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.begun: list[Any] = []
            self.read: list[tuple[int, int]] = []
            self.losses: list[torch.Tensor] = []

        def training_step(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
            self.begun.append(mark())
            ids, mask = inputs["input_ids"], inputs.get("attention_mask")
            self.read.append((int(mask.sum()) if mask is not None else ids.numel(), ids.numel()))
            loss = super().training_step(model, inputs, *rest, **options)
            self.losses.append(loss.detach())
            return loss

        def end(self) -> list[Lap]:
            """Return the laps: a step lasts until the next one begins."""
            seconds = between([*self.begun, mark()])
            losses = [float(loss) for loss in self.losses]
            return [
                Lap(second, real, computed, loss)
                for second, (real, computed), loss in zip(seconds, self.read, losses, strict=True)
            ]

    return Timed
