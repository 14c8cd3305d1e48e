"""A loaded model answers a conversation, streaming.

Import from the module files: `load` (`load_chat`), `local` (`LocalChat`).
"""

__all__ = ["detokenizer", "load", "local", "sampler", "source"]
