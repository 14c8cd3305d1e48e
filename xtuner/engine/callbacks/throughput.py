"""Tokens and arithmetic per second in the log line (ThroughputHook of 0.1.x)."""

from xtuner.engine.run import Callback, Run


class Throughput(Callback):
    """Adds `tokens_per_sec` and `tflops`.

    Arithmetic is that of the weights: 2 operations per weight and token forward, 2 backward, and 2 more for weights
    that are trained (https://arxiv.org/abs/2001.08361). Recomputation and attention scores are not counted.
    """

    def __init__(self) -> None:
        self.operations = 0

    def before_train(self, run: Run) -> None:
        """Count the weights; embeddings are looked up, not multiplied."""
        embedding = run.model.get_input_embeddings().weight  # type: ignore[operator]
        for parameter in run.model.parameters():
            if parameter is embedding:
                continue
            shape = getattr(getattr(parameter, "quant_state", None), "shape", parameter.shape)
            self.operations += (6 if parameter.requires_grad else 4) * shape.numel()

    def add_scalars(self, run: Run, scalars: dict[str, float]) -> None:
        """Add both."""
        speed = run.metrics.tokens_per_second()
        scalars["tokens_per_sec"] = speed
        scalars["tflops"] = speed * self.operations / 1e12
