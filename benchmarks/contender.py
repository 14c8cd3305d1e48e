"""The tools that are compared: each becomes a model and a function that trains it on one micro-batch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.device import device, limit_memory
from benchmarks.workload import RANK, TARGETS, TRAINED_WHOLE, Case

if TYPE_CHECKING:
    from xtuner.config.spec import RunSpec
    from xtuner.engine.plan.plan import Plan

OURS = "xtuner"
OTHERS = ("card", "optim", "pack", "packing", "rows", "segment", "most", "tries", "short")
"""Settings of a case that are no settings of our run, or are called otherwise there."""
QUANT = {"qlora": {"bits": 4}, "fp8": {"bits": 8, "type": "fp8"}, "int8": {"bits": 8}}
IGNORED = -100


@dataclass(frozen=True)
class Contender:
    """`step` trains on samples of tokens, each (T,) on the host, and returns the loss."""

    model: nn.Module
    step: Callable[[list[Tensor]], Tensor]
    plan: "Plan | None" = None
    """What we predicted."""


def build_contender(case: Case, folder: str, lengths: list[int]) -> Contender:
    """Load the model of `case` with its tool, as that tool's guide sets it up; `lengths` are the largest samples."""
    makers = {OURS: ours, "hf": plain, "liger": plain, "unsloth": unsloth}
    return makers[case.tool](case, folder, lengths)


def our_spec(case: Case, folder: str) -> "RunSpec":
    """Return the run that a case of ours stands for; settings of the case that we know are settings of the run."""
    from xtuner.config.spec import RunSpec
    from xtuner.config.spec_override import override_spec

    whole = case.method in TRAINED_WHOLE
    model = {"path": folder, "quant": QUANT.get(case.method), "lora": None if whole else {"r": RANK}}
    if whole:
        model["dtype"] = "bfloat16"  # as the others hold it in this comparison
    compiled = {"compile": "true"} if device() == "cuda" else {}
    words = compiled | {key: value for key, value in case.settings.items() if key not in OTHERS}
    if "optim" in case.settings:
        words["optim.name"] = case.settings["optim"]
    spec = RunSpec.model_validate({"model": model, "data": {"train": "none.json"}})
    return override_spec(spec, [f"{key}={value}" for key, value in words.items()])


def our_plan(case: Case, folder: str, lengths: list[int]) -> "Plan":
    """Return the plan of a case on the card that is here, as if it were free, or that it is to be like."""
    from xtuner.engine.plan.memory import CONTEXT
    from xtuner.engine.plan.plan import make_plan
    from xtuner.engine.plan.present import read_card
    from xtuner.engine.plan.shape import load_shape
    from xtuner.engine.plan.work import Work
    from xtuner.engine.precision import find_device

    card = read_card(find_device())
    if not card.is_cpu:
        card = replace(card, memory=float(torch.cuda.get_device_properties(0).total_memory))
    if "card" in case.settings and not card.is_cpu:
        card = replace(card, memory=min(card.memory, limit_memory(case.settings["card"]) + CONTEXT))
    alike = len(set(lengths)) == 1 and lengths[0] % 128 == 0
    work = Work(sum(lengths), max(lengths), 1_000_000, is_exact=True, alike=alike)
    return make_plan(our_spec(case, folder), load_shape(folder), card, work)


def ours(case: Case, folder: str, lengths: list[int]) -> Contender:
    """Return our engine: the very function that a run calls; what a case leaves open is decided by the plan."""
    from xtuner.dataset.batch import IGNORE, Batch
    from xtuner.engine.optim import build_optimiser
    from xtuner.engine.precision import choose_precision, find_device
    from xtuner.engine.step import train_step
    from xtuner.engine.strategy.single import Single
    from xtuner.model.load import load_model
    from xtuner.objective.sft import SFT
    from xtuner.ops.packing import Packing

    plan = our_plan(case, folder, lengths)
    spec = plan.resolved()
    here = find_device()
    precision = choose_precision(spec, here)
    strategy = Single(here, precision)
    loaded = load_model(spec.model, device=str(here), dtype=precision.weights, train=True)
    model = strategy.place(loaded, lambda placed: build_optimiser(spec.optim, placed))
    objective = SFT()
    done: list[Any] = []

    def step(samples: list[Tensor]) -> Tensor:
        sizes = [len(sample) for sample in samples]
        labels = torch.cat([torch.cat([sample[1:], sample.new_full((1,), IGNORE)]) for sample in samples])
        positions = torch.cat([torch.arange(size) for size in sizes])
        batch = Batch(torch.cat(samples)[None], labels[None], positions[None], packing=Packing.from_lengths(sizes))
        options: Any = {"seed": 0, "lr": 1e-5, "max_norm": 1.0, "after": done.append}
        train_step(strategy, objective, model, [batch], first=len(done), **options)
        loss: Tensor = done[-1].loss.total / done[-1].loss.weight
        done[:-1] = [None] * (len(done) - 1)
        return loss

    return Contender(model, step, plan)


def plain(case: Case, folder: str, lengths: list[int]) -> Contender:
    """Return transformers with PEFT, with Liger's kernels if the tool says so."""
    model = plain_model(case, folder)
    if case.method not in TRAINED_WHOLE:
        from peft import get_peft_model

        model.enable_input_require_grads()
        model = get_peft_model(model, lora_config())
    return Contender(model, stepper(model.train(), case))


def plain_model(case: Case, folder: str) -> Any:
    """Load the model with transformers, with recomputation on, ready for an adapter."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if case.tool == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device_map": {"": 0}} if device() == "cuda" else {}
    if case.method == "qlora":
        kinds = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **kinds
        )
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **options)
    model.config.use_cache = False
    if case.method == "qlora":
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    # transformers renamed the method in 5.23
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return model


def lora_config() -> Any:
    """Return the adapter of all contenders for PEFT."""
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=16, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=TARGETS)


def unsloth(case: Case, folder: str, lengths: list[int]) -> Contender:
    """Return Unsloth as its guide sets it up."""
    model, _ = unsloth_model(case, folder, max(lengths))
    return Contender(model, stepper(model, case))


def unsloth_model(case: Case, folder: str, length: int) -> tuple[Any, Any]:
    """Load model and tokenizer with Unsloth, for samples of up to `length` tokens."""
    from unsloth import FastLanguageModel

    whole = case.method in TRAINED_WHOLE
    model, tokenizer = FastLanguageModel.from_pretrained(
        folder,
        max_seq_length=length,
        dtype=torch.bfloat16,
        load_in_4bit=case.method == "qlora",
        full_finetuning=whole,
    )
    if not whole:
        model = FastLanguageModel.get_peft_model(
            model,
            r=RANK,
            lora_alpha=16,
            lora_dropout=0,
            bias="none",
            use_gradient_checkpointing="unsloth",
            target_modules=TARGETS,
        )
    FastLanguageModel.for_training(model)
    return model, tokenizer


def stepper(model: Any, case: Case) -> Callable[[list[Tensor]], Tensor]:
    """Return a step as a training loop of one's own has it: samples of one length stacked, others padded."""
    optimizer = build_adamw(case, [parameter for parameter in model.parameters() if parameter.requires_grad])
    here = device()

    def step(samples: list[Tensor]) -> Tensor:
        inputs = {name: tensor.to(here) for name, tensor in padded(samples).items()}
        with torch.autocast(here, torch.bfloat16, enabled=here == "cuda"):
            loss: Tensor = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def build_adamw(case: Case, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return the AdamW that a case names: fused, or one of bitsandbytes'."""
    name = case.settings.get("optim", "adamw")
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    import bitsandbytes

    kinds = {"paged_adamw_8bit": "PagedAdamW8bit", "adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW32bit"}
    optimiser: torch.optim.Optimizer = getattr(bitsandbytes.optim, kinds[name])(parameters, lr=1e-5)
    return optimiser


def padded(samples: list[Tensor]) -> dict[str, Tensor]:
    """Return the inputs of a model of transformers; without an attention mask where nothing is padded."""
    longest = max(len(sample) for sample in samples)
    if all(len(sample) == longest for sample in samples):
        ids = torch.stack(samples)
        return {"input_ids": ids, "labels": ids}
    ids = torch.zeros(len(samples), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, : len(sample)] = sample
        mask[row, : len(sample)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}
