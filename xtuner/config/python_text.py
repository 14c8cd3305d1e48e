"""The statements of a Python config: reads a 0.1.x config text into a `Table` without running it.

Imports give `Ref`s. Imports of a file beside it (`with read_base():` or not) take the variables of that file, and
functions defined there become `file.py:name`. A top-level name that is overridden takes the new value where it is
assigned, so that everything that uses it sees it (0.1.x changed the top-level name alone, which had no effect).
"""

import ast
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtuner.config.expression import SUPPORTED, Expressions, plain
from xtuner.config.ref import Ref
from xtuner.config.table import COMMAND_LINE, Table
from xtuner.errors import UserError

SHOWING = ("print(", "warnings.", "logging.", "logger.")
"""How calls begin that are left out."""
STATEMENTS = "Supported are imports, assignments, if/else, for, del, assert, method calls and `with read_base():`."


def read_python(text: str, file: str, overrides: Mapping[str, Any] | None = None) -> "PythonText":
    """Read a config text; `overrides` are new values of top-level names.

    Functions and classes that it defines are names, like imported ones (`own_code` loads them).

    Raises:
        UserError: not Python, or not in the config language; says file and line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\\d" in a text is no news to those who wrote it
            tree = ast.parse(text, filename=file)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise UserError(
            f"{file}:{error.lineno or 0}: this is not Python: {error.msg}.",
            f"Look at: {line[:80]}" if line else "Check brackets and quotes.",
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{file}: this is not Python: {error}.", "Start from one that is: xtuner list-cfg") from error
    reader = PythonText(file, overrides or {})
    try:
        reader.run(tree.body)
    except RecursionError as error:
        raise UserError(
            f"{file}: this is nested too deeply for a config.", "Give the parts names of their own."
        ) from error
    return reader


class PythonText:
    """One config file being read. `values` are its top-level variables, `read` the names that it uses itself, `notes`
    sentences about what it says without effect."""

    def __init__(self, file: str, overrides: Mapping[str, Any]) -> None:
        self.file = file
        self.overrides = overrides
        self.values = Table(file=file)
        self._expressions = Expressions(file, {"__file__": file})
        self._names = self._expressions.names
        self._folders: list[Path] = []  # that sys.path was given
        self.notes: list[str] = []

    @property
    def read(self) -> set[str]:
        """Names that some expression of the file has used."""
        return self._expressions.read

    def run(self, body: list[ast.stmt]) -> None:
        """Go through statements in order."""
        for statement in body:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Import():
                for name in node.names:
                    bound = name.asname or name.name.split(".")[0]
                    self._names[bound] = Ref(name.name if name.asname else bound)
            case ast.ImportFrom():
                self._import_from(node, base=False)
            case ast.Assign():
                for target in node.targets:
                    self._assign(target, node.value)
            case ast.AnnAssign():
                if node.value is not None:
                    self._assign(node.target, node.value)
            case ast.AugAssign():
                self._augment(node)
            case ast.If():
                self.run(node.body if self._expressions.value(node.test) else node.orelse)
            case ast.For():
                self._for(node)
            case ast.With():
                self._with(node)
            case ast.Delete():
                self._delete(node)
            case ast.Expr():
                self._expression(node.value)
            case ast.Pass():
                pass
            case ast.Assert():
                if not self._expressions.value(node.test):
                    raise self._expressions.error(
                        node, f"{ast.unparse(node)[:80]} does not hold.", "Change the values."
                    )
            case ast.Try():
                # imports are names and cannot fail, so what would be done about a failure never is
                self.run([*node.body, *node.orelse, *node.finalbody])
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                self._names[node.name] = self._own(node.name)
            case ast.Raise():
                raise self._expressions.error(
                    node, f"this config stops here: {self._reason(node)}", "Change the values."
                )
            case _:
                what = type(node).__name__.lower()
                raise self._expressions.error(
                    node, f"The statement {what} is not part of the config language.", STATEMENTS
                )

    def _expression(self, node: ast.expr) -> None:
        """Do a statement that is an expression; what only shows something changes no setting."""
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Constant) or (_shows(node) and called.split(".")[0] not in self.values):
            return
        if isinstance(node, ast.Call) and called in ("sys.path.append", "sys.path.insert") and node.args:
            self._folders.append(Path(str(self._expressions.value(node.args[-1]))).expanduser())
            return
        self._expressions.value(node)

    def _own(self, name: str) -> Ref:
        """Return a function or class of this file as a name; it runs when it is used, if it is."""
        return Ref(f"{Path(self.file).resolve()}:{name}")

    def _reason(self, node: ast.Raise) -> str:
        """Return what a `raise` says."""
        if isinstance(node.exc, ast.Call) and node.exc.args:
            return str(self._expressions.value(node.exc.args[0]))
        return ast.unparse(node)

    def _set(self, name: str, value: Any, line: int) -> None:
        if name in self.overrides:
            value, line = self.overrides[name], COMMAND_LINE
        if name == "_base_":
            raise UserError(
                f"{self.file}:{line}: _base_ is of another kind of config.",
                "Write: with read_base(): from .other_config import *",
            )
        self._names[name] = value
        self.values.put(name, plain(value), line)

    def _assign(self, target: ast.expr, node: ast.expr) -> None:
        match target:
            case ast.Name() if isinstance(node, ast.Lambda):
                self._names[target.id] = self._own(target.id)
            case ast.Name():
                overridden = target.id in self.overrides
                self._set(target.id, None if overridden else self._expressions.value(node), target.lineno)
            case ast.Tuple() | ast.List():
                outside = dict(self._names)
                self._expressions.bind(target, self._expressions.value(node))
                for name in [name for name in self._names if outside.get(name) is not self._names[name]]:
                    self._set(name, self._names[name], target.lineno)
            case ast.Subscript():
                owner = self._expressions.value(target.value)
                self._put(owner, self._expressions.value(target.slice), self._expressions.value(node), target)
            case ast.Attribute():
                self._put(self._expressions.value(target.value), target.attr, self._expressions.value(node), target)
            case _:
                raise self._expressions.error(target, f"{ast.unparse(target)} cannot be given a value.", SUPPORTED)

    def _put(self, owner: Any, key: Any, value: Any, node: ast.expr) -> None:
        if isinstance(owner, Ref) and owner.path == "os.environ":
            raise self._expressions.error(
                node, f"{key} is set inside the config.", f"Set it for the command: {key}={value} xtuner train ..."
            )
        if isinstance(owner, Ref):
            self.notes.append(f"{self.file}:{node.lineno}: {ast.unparse(node)} is not changed: no library is patched.")
        elif isinstance(owner, Table):
            owner.put(key, plain(value), node.lineno)
        elif isinstance(owner, list) and isinstance(key, int) and -len(owner) <= key < len(owner):
            owner[key] = value
        else:
            raise self._expressions.error(node, f"{ast.unparse(node)} cannot be given a value.", SUPPORTED)

    def _augment(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name) and node.target.id in self.overrides:
            return
        before, added = self._expressions.value(node.target), self._expressions.value(node.value)
        value = self._expressions.binary(node.op, before, added, node)
        match node.target:
            case ast.Name():
                self._set(node.target.id, value, node.lineno)
            case ast.Subscript():
                owner = self._expressions.value(node.target.value)
                self._put(owner, self._expressions.value(node.target.slice), value, node.target)
            case ast.Attribute():
                self._put(self._expressions.value(node.target.value), node.target.attr, value, node.target)

    def _for(self, node: ast.For) -> None:
        for value in list(self._expressions.value(node.iter)):
            outside = dict(self._names)
            self._expressions.bind(node.target, value)
            for name in [name for name in self._names if outside.get(name) is not self._names[name]]:
                self._set(name, self._names[name], node.lineno)
            self.run(node.body)
        self.run(node.orelse)

    def _delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id in self._names:
                del self._names[target.id]
                self.values.pop(target.id, None)
            elif isinstance(target, ast.Subscript):
                owner, key = self._expressions.value(target.value), self._expressions.value(target.slice)
                if not isinstance(owner, dict) or key not in owner:
                    raise self._expressions.error(
                        target, f"{ast.unparse(target)} is not there to delete.", "Remove this line."
                    )
                del owner[key]
            else:
                raise self._expressions.error(
                    target, f"{ast.unparse(target)} is not there to delete.", "Remove this line."
                )

    def _with(self, node: ast.With) -> None:
        call = node.items[0].context_expr
        if len(node.items) != 1 or not (isinstance(call, ast.Call) and ast.unparse(call.func).endswith("read_base")):
            raise self._expressions.error(node, "This `with` is not part of the config language.", STATEMENTS)
        for statement in node.body:
            if isinstance(statement, ast.ImportFrom):
                self._import_from(statement, base=True)
            elif not isinstance(statement, ast.Pass):
                raise self._expressions.error(
                    statement, "`with read_base():` holds imports only.", "Write: from .other_config import name"
                )

    def _import_from(self, node: ast.ImportFrom, *, base: bool) -> None:
        if node.module == "__future__":
            return
        file = self._beside(node)
        if node.level or base or file.is_file():
            self._import_beside(node, file)
            return
        for name in node.names:
            if name.name == "*":
                raise self._expressions.error(
                    node, f"from {node.module} import * does not say which names are meant.", "Name what you need."
                )
            self._names[name.asname or name.name] = Ref(f"{node.module}.{name.name}")

    def _beside(self, node: ast.ImportFrom) -> Path:
        """Return the file that an import names when it is taken relative to this one, or to what sys.path was given."""
        folder = Path(self.file).resolve().parent
        for _ in range(node.level - 1):
            folder = folder.parent
        folders = [folder] if node.level else [folder, *self._folders]
        files = [one.joinpath(*(node.module or "").split(".")).with_suffix(".py") for one in folders]
        return next((file for file in files if file.is_file()), files[0]).resolve()

    def _import_beside(self, node: ast.ImportFrom, file: Path) -> None:
        """Take names from a file that lies relative to this one: variables by value, functions as `file.py:name`."""
        if not file.is_file():
            raise self._expressions.error(node, f"There is no file {file}.", "Check the import.")
        text = file.read_text(encoding="utf-8-sig")
        try:
            defined = defined_names(ast.parse(text))
        except (SyntaxError, ValueError) as error:
            raise UserError(f"{file}: this is not Python: {error}.", f"Try it: python {file}") from error
        wanted = {name.asname or name.name: name.name for name in node.names}
        for bound in [bound for bound, name in wanted.items() if name in defined]:
            self._names[bound] = Ref(f"{file}:{wanted.pop(bound)}")
        if not wanted:
            return
        other = read_python(text, str(file), self.overrides)
        self.notes += other.notes
        if "*" in wanted:  # with what the other file imports itself
            imported = {name: value for name, value in other._names.items() if isinstance(value, Ref)}
            self._names.update({name: value for name, value in imported.items() if name not in other.values})
            wanted = {name: name for name in other.values}
        for bound, name in wanted.items():
            if name not in other.values:
                raise self._expressions.error(node, f"{file} has no {name}.", "Check the import.")
            self._set(bound, other.values[name], node.lineno)


def defined_names(tree: ast.Module) -> set[str]:
    """Names of the functions and classes that a file defines at its top level."""
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)}


def _shows(node: ast.expr) -> bool:
    """Whether an expression only shows something, or keeps something from being shown: it changes no setting."""
    return isinstance(node, ast.Call) and ast.unparse(node).startswith(SHOWING)
