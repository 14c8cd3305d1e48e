"""Tokenizers that transformers lacks, one file per family; all are built on the `tokenizers` library."""

__all__: list[str] = []
