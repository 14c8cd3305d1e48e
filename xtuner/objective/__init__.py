"""What is minimised: an objective turns a model and a batch into a `Loss`."""

OBJECTIVES: dict[str, str] = {
    "sft": "xtuner.objective.sft:SFT",
}
"""name -> dataclass whose fields are the objective's options."""

__all__ = ["OBJECTIVES"]
