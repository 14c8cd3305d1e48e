"""Functions that somebody has written into a config: what they need of the file is loaded, the settings are not.

Reading a config runs nothing of it. A function in it runs when data are prepared with it; then its own lines are
loaded, and of the rest of the file only what it uses: imports, constants, other functions.
"""

import ast
import symtable
from collections.abc import Iterator
from importlib.abc import SourceLoader
from pathlib import Path

CONFIG = {"train_dataloader", "read_base"}
"""A file that gives one of these names a value is a config."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class PartLoader(SourceLoader):
    """Loads some lines of a file, the others blank, so that tracebacks name the lines of the file."""

    def __init__(self, file: Path, source: str) -> None:
        self.file = file
        self.source = source

    def get_filename(self, fullname: str) -> str:
        """Return the file that tracebacks name."""
        return str(self.file)

    def get_data(self, path: str | bytes) -> bytes:
        """Return the lines."""
        return self.source.encode()


def is_config(tree: ast.Module) -> bool:
    """Whether a file is a config with functions in it, and not a file of functions."""
    kinds = ast.Assign | ast.AnnAssign | ast.ImportFrom
    return any(CONFIG & _bound(node) for node in tree.body if isinstance(node, kinds))


def needed_lines(text: str, tree: ast.Module, name: str) -> str:
    """Return the text with only those top-level statements left that `name` is defined by or needs."""
    wanted, kept, done = [name], [], set()
    while wanted:
        one = wanted.pop()
        if one in done:
            continue
        done.add(one)
        for node in tree.body:
            if node not in kept and (one in _bound(node) or _is_future(node)):
                kept.append(node)
                wanted += _looked_up(node)
    lines = text.split("\n")  # as Python counts them: a text may hold other signs that part lines
    shown = {number for node in kept for number in range(_first_line(node), (node.end_lineno or node.lineno) + 1)}
    return "\n".join(line if number in shown else "" for number, line in enumerate(lines, 1)) + "\n"


def _looked_up(node: ast.stmt) -> set[str]:
    """Return the names of the file that a top-level statement needs, now or when it is called; not its local ones."""
    scopes = [symtable.symtable(ast.unparse(node), "", "exec")]
    for scope in scopes:
        scopes += scope.get_children()
    return {symbol.get_name() for scope in scopes for symbol in scope.get_symbols() if symbol.is_global()}


def _bound(node: ast.stmt) -> set[str]:
    """Return the names that a top-level statement gives a value, or whose value it changes."""
    return set(_names(node))


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, FUNCTIONS):
        yield node.name
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        yield from _owner(node.value)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        yield from _owner(node.value.func.value)
    for child in ast.iter_child_nodes(node):
        yield from _names(child)


def _owner(node: ast.expr) -> Iterator[str]:
    """Yield the name of the variable that an item, or an item of an item, belongs to."""
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, FUNCTIONS) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])
