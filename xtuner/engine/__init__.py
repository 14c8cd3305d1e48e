"""Runs a `RunSpec`: strategy, optimiser, schedule, loop, callbacks, work dir, resume."""

OPTIMISERS: dict[str, str] = {
    "adamw": "xtuner.engine.optim:adamw",
    "adamw_8bit": "xtuner.engine.adamw_stored:adamw_8bit",
    "adamw_bf16": "xtuner.engine.adamw_bf16:adamw_bf16",
    "paged_adamw": "xtuner.engine.adamw_stored:paged_adamw",
    "paged_adamw_8bit": "xtuner.engine.adamw_stored:paged_adamw_8bit",
    "sgd": "xtuner.engine.optim:sgd",
}
"""Values of `optim.name`."""

STRATEGIES: dict[str, str] = {
    "ddp": "xtuner.engine.strategy.ddp:DDP",
    "deepspeed": "xtuner.engine.strategy.deepspeed:DeepSpeed",
    "fsdp": "xtuner.engine.strategy.fsdp:FSDP",
    "single": "xtuner.engine.strategy.single:Single",
}
"""Values of `strategy`."""

CALLBACKS: dict[str, str] = {
    "hf_model": "xtuner.engine.callbacks.hf_model:HFModel",
    "tensorboard": "xtuner.engine.callbacks.tensorboard:TensorBoard",
    "throughput": "xtuner.engine.callbacks.throughput:Throughput",
    "wandb": "xtuner.engine.callbacks.wandb:WandB",
}
"""Values of `callbacks`, beside those that every run has."""

__all__ = ["CALLBACKS", "OPTIMISERS", "STRATEGIES"]
