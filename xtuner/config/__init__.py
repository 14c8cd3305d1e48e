"""What to do: `RunSpec`, how it is read from Python text, YAML or a run folder, overridden, checked and written.

Torch-free. A Python config is read, never run: imports become names (`Ref`), the rest is a small language
(`expression.py`, `python_text.py`).
"""

__all__ = ["check", "choice", "dump", "override", "reader", "ref", "spec", "table"]
