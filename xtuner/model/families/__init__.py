"""Model families that transformers lacks, one file each, with the parameter names of their checkpoints."""

__all__: list[str] = []
