"""Messages, chat templates and their spelling: a conversation in, spans of text (or token ids) out. Torch-free.

The table of template names is `builtin.TEMPLATES`, that of system texts `builtin.SYSTEMS`.
"""

__all__ = ["builtin", "chat_model", "detect", "encode", "jinja", "message", "template"]
