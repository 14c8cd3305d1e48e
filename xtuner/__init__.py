"""XTuner: fine-tune a chat model in one evening."""

from xtuner.version import __version__

__all__ = ["__version__"]
