"""Programs that talk: they know conversations and `ChatModel`, never a tokenizer or a device.

Import from the module files: `repl` (`talk`, `ask`).
"""

__all__: list[str] = []
