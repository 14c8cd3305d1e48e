"""The conversations that the built-in model learns, written by grammars: one module or text file per theme."""
