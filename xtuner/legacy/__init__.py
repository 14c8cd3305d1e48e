"""The language of 0.1.x configs: its words, and their translation to a `RunSpec`. Torch-free; called from `cli` alone.

A config is a sentence of `dict(type=word, argument=value, ...)`. `vocabulary` knows the words, `phrase` takes their
arguments one by one and refuses what is left over, and there is a file for every part of the sentence.
"""

__all__ = ["run"]
