"""Memory and disk: what a checkpoint will take, and what to change when the memory was not enough."""

from torch import nn

from xtuner.config.spec import RunSpec


def checkpoint_bytes(model: nn.Module, spec: RunSpec) -> int:
    """Estimate the size of a checkpoint: trained weights, and two moments of each in the optimiser's format."""
    moment = 1 if "8bit" in spec.optim.name else 4
    moments = 2 * moment if spec.checkpoint.optimizer else 0
    return sum(
        parameter.numel() * (parameter.element_size() + moments)
        for parameter in model.parameters()
        if parameter.requires_grad
    )


def advise(spec: RunSpec) -> str:
    """Say what to type so that less memory is needed: the cheapest change that is left."""
    if spec.loop.batch_size > 1:
        accumulate = spec.loop.accumulate * spec.loop.batch_size
        return f"Add loop.batch_size=1 loop.accumulate={accumulate}, which trains the same."
    if not spec.model.recompute:
        return "Add model.recompute=true."
    if spec.data.max_length > 1024:
        return f"Add data.max_length={spec.data.max_length // 2}."
    if spec.model.lora is None:
        return "Train an adapter instead of all weights: model.lora.r=64."
    if spec.model.quant is None:
        return "Keep the frozen weights in 4 bits: model.quant.bits=4."
    if "8bit" not in spec.optim.name:
        return "Add optim.name=paged_adamw_8bit."
    return f"Add data.max_length={max(spec.data.max_length // 2, 1)}, or use a smaller model."
