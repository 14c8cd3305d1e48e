"""Programs for people: the terminal chat, which knows conversations and `ChatModel` alone, and the quickstart.

Import from the module files: `repl` (`talk`, `ask`), `quickstart`, `identity`.
"""

__all__: list[str] = []
