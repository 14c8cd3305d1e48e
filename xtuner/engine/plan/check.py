"""What a plan refuses, since a run would: names that nothing has, and settings that do not go together (no torch)."""

from xtuner.config.choice import check_name
from xtuner.config.spec import RunSpec
from xtuner.conversation.builtin import find_template
from xtuner.engine import OPTIMISERS, STRATEGIES
from xtuner.engine.plan.card import Card
from xtuner.engine.plan.formats import choose_formats
from xtuner.engine.plan.shape import Shape
from xtuner.engine.plan.trained import find_trained
from xtuner.engine.plan.work import sequence_parts
from xtuner.errors import UserError

OF_TORCH = ("adamw", "sgd")
"""Optimisers that shards of weights go with."""


def check_plan(spec: RunSpec, shape: Shape, card: Card) -> None:
    """Refuse what would be refused once torch is there and the model is loaded, as far as sizes tell.

    Raises:
        UserError: says what to change.
    """
    if spec.strategy.name != "auto":
        check_name(STRATEGIES, spec.strategy.name, "strategy")
    check_name(OPTIMISERS, spec.optim.name, "optimiser")
    if isinstance(spec.data.template, str):
        find_template(spec.data.template)
    _check_cards(spec, card)
    _check_model(spec, shape)
    quant = spec.model.quant
    if quant is not None and quant.type == "fp8" and not card.fp8 and not card.is_cpu:
        raise UserError(
            f"{card.rates_of or card.name} cannot multiply FP8 with a scale for each row; Hopper (H100) and later can.",
            "Use model.quant.bits=4, or leave model.quant out.",
        )


def _check_cards(spec: RunSpec, card: Card) -> None:
    if spec.strategy.name == "single" and card.count > 1:
        raise UserError(
            f"strategy=single is one process, and there are {card.count} cards.",
            "Leave it out, or plan for one card.",
        )
    if card.count % sequence_parts(spec):
        raise UserError(
            f"sequence_parallel_size is {sequence_parts(spec)}, and there are {card.count} cards.",
            f"Plan for a multiple of it, for example NPROC_PER_NODE={sequence_parts(spec)}, or set it to 1.",
        )
    if spec.strategy.name == "fsdp" and spec.optim.name in OPTIMISERS and spec.optim.name not in OF_TORCH:
        raise UserError(
            f"optim.name={spec.optim.name} does not know sharded weights.", "Set optim.name=adamw, or strategy=ddp."
        )
    formats = choose_formats(spec, is_cpu=card.is_cpu, has_bfloat16=card.has_bfloat16)
    if spec.strategy.name == "fsdp" and formats.compute == "float16":
        raise UserError(
            "strategy=fsdp does not compute in float16.", "Set loop.precision=bfloat16 (float32 on older cards)."
        )
    if spec.optim.name == "adamw_bf16" and spec.strategy.name == "deepspeed":
        raise UserError(
            "DeepSpeed keeps a copy of the weights in float32, which optim.name=adamw_bf16 is there to save.",
            "Set optim.name=adamw, or strategy=ddp.",
        )
    if spec.optim.in_backward and formats.compute == "float16":
        raise UserError(
            "optim.in_backward does not go with float16, whose gradients are all looked at before a step.",
            "Leave it out, or set loop.precision=float32.",
        )
    if spec.optim.in_backward and (card.count > 1 or spec.strategy.name not in ("auto", "single")):
        raise UserError(
            "optim.in_backward moves weights before other processes could add their gradients.",
            "Leave it out, or train on one card with strategy=single.",
        )


def _check_model(spec: RunSpec, shape: Shape) -> None:
    model = spec.model
    if model.quant is not None and model.lora is None:
        raise UserError(
            "Quantised weights cannot be trained themselves.", "Add an adapter (model.lora), or leave model.quant out."
        )
    if model.lora is not None and not find_trained(spec, shape).weights:
        raise UserError(
            f"model.lora.targets names no layer of this model: {model.lora.targets}.",
            f"It has {', '.join(dict.fromkeys(linear.name for linear in shape.linears))}.",
        )
    if shape.tied and model.host_embedding:
        raise UserError(
            "The input embedding is the output head too, which every token needs on the card.",
            "Leave model.host_embedding out.",
        )
    if shape.tied and model.quant is not None and model.quant.head:
        raise UserError(
            "The output head of this model is its embedding too, whose rows are not stored in 4 bits.",
            "Leave model.quant.head out.",
        )
