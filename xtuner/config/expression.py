"""The expressions of a Python config, worked out from their syntax tree; nothing of the file is ever executed.

An imported name is a `Ref`; `dict(...)` is a `Table`. What may be called is a short list of harmless functions.
"""

import ast
import operator
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import Any

from xtuner.config.function import (
    BUILTINS,
    CONSTANTS,
    DICTS,
    FUNCTIONS,
    LARGEST,
    METHODS,
    PATH_PARTS,
    check_format,
    check_length,
    check_size,
    check_width,
)
from xtuner.config.ref import Ref
from xtuner.config.table import Table
from xtuner.errors import UserError, did_you_mean

Names = dict[str, Any]


def plain(value: Any) -> Any:
    """Return a path as the text that settings are made of, anything else as it is."""
    return str(value) if isinstance(value, PurePath) else value


MOST_STEPS = 1_000_000


BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitOr: operator.or_,
}

COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}

SUPPORTED = (
    "Supported are numbers, texts, lists, dicts, imported names, arithmetic, comparisons, conditional expressions, "
    "comprehensions, f-strings, indexing and dict(), list(), int(), float(), str(), len(), min(), max(), range(), "
    "round(), os.path.join()."
)
MISTAKES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


class Expressions:
    """Works out expressions of one file. `names` holds what the file has defined so far."""

    def __init__(self, file: str, names: Names) -> None:
        self.file = file
        self.names = names
        self.read: set[str] = set()
        """Every name that some expression has used."""
        self._steps = 0

    def error(self, node: ast.AST, what: str, fix: str = "") -> UserError:
        """Make the error of a place in the file."""
        return UserError(f"{self.file}:{getattr(node, 'lineno', 0)}: {what}", fix)

    def value(self, node: ast.expr) -> Any:
        """Work out one expression.

        Raises:
            UserError: not in the language, or wrong (an unknown name, a division by zero); says file and line.
        """
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise self.error(node, "This config does not come to an end.", "Write values instead of computing them.")
        try:
            return self._value(node)
        except MISTAKES as mistake:
            detail = f"the key {mistake} is missing" if isinstance(mistake, KeyError) else str(mistake)
            parts = sorted({part.id for part in ast.walk(node) if isinstance(part, ast.Name)} & set(self.names))
            known = ", ".join(f"{name} is {str(self.names[name])!r}"[:80] for name in parts[:3])
            raise self.error(
                node, f"{ast.unparse(node)[:60]} cannot be worked out: {detail}.", known and f"Here {known}."
            ) from mistake

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return self._name(node)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Subscript():
                return self._item(self.value(node.value), node.slice, node)
            case ast.Call():
                return self._call(node)
            case ast.Dict():
                return self._dict(node)
            case ast.List() | ast.Tuple() | ast.Set():
                kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
                return kind(map(plain, self._elements(node.elts)))
            case ast.BinOp():
                return self.binary(node.op, self.value(node.left), self.value(node.right), node)
            case ast.UnaryOp():
                return self._unary(node)
            case ast.BoolOp():
                return self._bool(node)
            case ast.Compare():
                return self._compare(node)
            case ast.IfExp():
                return self.value(node.body if self.value(node.test) else node.orelse)
            case ast.JoinedStr():
                parts = [str(self.value(part)) for part in node.values]
                check_length(sum(map(len, parts)))
                return "".join(parts)
            case ast.FormattedValue():
                return self._formatted(node)
            case ast.ListComp() | ast.GeneratorExp():
                return [self.value(node.elt) for _ in self._rounds(node.generators)]
            case ast.SetComp():
                return {self.value(node.elt) for _ in self._rounds(node.generators)}
            case ast.DictComp():
                table = Table(file=self.file, line=node.lineno)
                for _ in self._rounds(node.generators):
                    table.put(self.value(node.key), self.value(node.value), node.lineno)
                return table
            case ast.Lambda():
                raise self.error(
                    node, "A lambda can only stand alone.", "Give it a name above: my_function = lambda row: ..."
                )
        raise self.error(node, f"{ast.unparse(node)[:60]} is not part of the config language.", SUPPORTED)

    def _name(self, node: ast.Name) -> Any:
        self.read.add(node.id)
        if node.id in self.names:
            return self.names[node.id]
        hint = did_you_mean(node.id, [*self.names, *BUILTINS]) or "Import it or give it a value first."
        raise self.error(node, f"{node.id} has no value here.", hint)

    def _attribute(self, node: ast.Attribute) -> Any:
        owner = self.value(node.value)
        if isinstance(owner, Ref):
            path = f"{owner.path}.{node.attr}"
            return CONSTANTS[path] if path in CONSTANTS else Ref(path)
        if isinstance(owner, dict):
            return owner[node.attr]
        if isinstance(owner, PurePath) and node.attr in PATH_PARTS:
            return getattr(owner, node.attr)
        raise self.error(node, f"{ast.unparse(node)} is not part of the config language.", SUPPORTED)

    def _item(self, owner: Any, index: ast.expr, node: ast.expr) -> Any:
        if isinstance(index, ast.Slice):
            parts = (index.lower, index.upper, index.step)
            return owner[slice(*(None if part is None else self.value(part) for part in parts))]
        key = self.value(index)
        if isinstance(owner, Ref):
            if owner.path == "os.environ":
                return os.environ[key]
            if isinstance(key, str) and key.isidentifier():
                return Ref(f"{owner.path}.{key}")
            raise self.error(node, f"{owner.path} is an imported name; {key!r} cannot be looked up in it.", SUPPORTED)
        return owner[key]

    def _elements(self, nodes: Iterable[ast.expr]) -> list[Any]:
        values: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                values.extend(self.value(node.value))
            else:
                values.append(self.value(node))
        return values

    def _dict(self, node: ast.Dict) -> Table:
        table = Table(file=self.file, line=node.lineno)
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                table.join(self.value(value))
            else:
                table.put(self.value(key), plain(self.value(value)), key.lineno)
        return table

    def _call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id == "dict" and "dict" not in self.names:
            return self._dict_call(node)
        if self._path(node.func) in DICTS:
            return self._dict_call(node)
        function = self._function(node)
        given = self._elements(node.args)
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.value(keyword.value)
            named.update(value if keyword.arg is None else {keyword.arg: value})
        check_size(function, given, named)
        result = function(*given, **named)
        return list(result) if isinstance(result, Iterator) else result

    def _path(self, node: ast.expr) -> str:
        """Return the dotted name of something imported, without noting that it was used; else nothing."""
        if isinstance(node, ast.Attribute):
            owner = self._path(node.value)
            return f"{owner}.{node.attr}" if owner else ""
        value = self.names.get(node.id) if isinstance(node, ast.Name) else None
        return value.path if isinstance(value, Ref) else ""

    def _dict_call(self, node: ast.Call) -> Table:
        table = Table(file=self.file, line=node.lineno)
        for given in self._elements(node.args):
            table.join(given if isinstance(given, dict) else Table(dict(given), file=self.file, line=node.lineno))
        for keyword in node.keywords:
            value = self.value(keyword.value)
            if keyword.arg is None:
                table.join(value)
            else:
                table.put(keyword.arg, plain(value), keyword.lineno)
        return table

    def _function(self, node: ast.Call) -> Callable[..., Any]:
        function = node.func
        if isinstance(function, ast.Name) and function.id in BUILTINS and function.id not in self.names:
            return BUILTINS[function.id]
        if isinstance(function, ast.Attribute):
            owner = self.value(function.value)
            if isinstance(owner, Ref):
                return self._imported(node, f"{owner.path}.{function.attr}")
            for kind, methods in METHODS.items():
                if isinstance(owner, kind) and function.attr in methods:
                    if isinstance(owner, str) and function.attr == "format":
                        check_format(owner)
                    return getattr(owner, function.attr)
        elif isinstance(function, ast.Name) and isinstance(self.names.get(function.id), Ref):
            return self._imported(node, self.value(function).path)
        raise self.error(node, f"{ast.unparse(function)}(...) cannot be called in a config.", SUPPORTED)

    def _imported(self, node: ast.Call, path: str) -> Callable[..., Any]:
        if path in FUNCTIONS:
            return FUNCTIONS[path]
        name = ast.unparse(node.func)
        fix = f"Write dict(type={name}, ...) instead."
        if ":" in path:
            fix = "Functions of a config are not run while it is read: write the value that it gives."
        raise self.error(node, f"{name}(...) cannot be called in a config.", fix)

    def binary(self, kind: ast.operator, left: Any, right: Any, node: ast.AST) -> Any:
        """Work out `left kind right`; sizes are bounded so that no config can hang its reader."""
        operation = BINARY.get(type(kind))
        if operation is None:
            raise self.error(node, f"The operator in {ast.unparse(node)[:60]} is not supported.", SUPPORTED)
        if isinstance(left, Ref) or isinstance(right, Ref):
            ref = left if isinstance(left, Ref) else right
            raise self.error(node, f"{ref.path} is an imported name; nothing can be computed with it.", SUPPORTED)
        if isinstance(kind, ast.Pow) and (abs(right) > 64 or abs(left) > LARGEST):
            raise self.error(node, "This power is too large for a config.", "Write the number.")
        if isinstance(kind, ast.Mult):
            for some, other in ((left, right), (right, left)):
                if isinstance(some, str | list | tuple) and len(some) * other > LARGEST:
                    raise self.error(node, "This text or list is too large for a config.", "Write a shorter one.")
        if isinstance(kind, ast.Add) and isinstance(left, str | list | tuple) and isinstance(right, type(left)):
            check_length(len(left) + len(right))
        if isinstance(kind, ast.Mod) and isinstance(left, str):
            check_width(left)
            values = right if isinstance(right, tuple) else (right,)
            check_length(len(left) + sum(len(str(value)) for value in values))
        if isinstance(kind, ast.BitOr) and isinstance(left, dict):
            merged = Table(file=self.file, line=getattr(node, "lineno", 0))
            merged.join(left)
            merged.join(right)
            return merged
        return operation(left, right)

    def _unary(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        match node.op:
            case ast.USub():
                return -value
            case ast.UAdd():
                return +value
            case ast.Not():
                return not value
        raise self.error(node, f"The operator in {ast.unparse(node)} is not supported.", SUPPORTED)

    def _bool(self, node: ast.BoolOp) -> Any:
        value: Any = None
        for part in node.values:
            value = self.value(part)
            if bool(value) == isinstance(node.op, ast.Or):
                break
        return value

    def _compare(self, node: ast.Compare) -> bool:
        left = self.value(node.left)
        for kind, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.value(right_node)
            if not COMPARE[type(kind)](left, right):
                return False
            left = right
        return True

    def _formatted(self, node: ast.FormattedValue) -> str:
        value = self.value(node.value)
        form = self.value(node.format_spec) if node.format_spec else ""
        check_width(form)
        if node.conversion == ord("r"):
            value = repr(value)
        return format(str(value) if isinstance(value, Ref) else value, form)

    def _rounds(self, generators: list[ast.comprehension]) -> Iterator[None]:
        """Go through the rounds of a comprehension; its variables are gone afterwards."""
        outside = dict(self.names)
        try:
            yield from self._nested(generators)
        finally:
            self.names.clear()
            self.names.update(outside)

    def _nested(self, generators: list[ast.comprehension]) -> Iterator[None]:
        if not generators:
            yield
            return
        for value in self.value(generators[0].iter):
            self.bind(generators[0].target, value)
            if all(self.value(test) for test in generators[0].ifs):
                yield from self._nested(generators[1:])

    def bind(self, target: ast.expr, value: Any) -> None:
        """Give a name, or several at once, a value."""
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            values = list(value)
            if len(values) != len(target.elts):
                names = ast.unparse(target)
                what = f"{names} are {len(target.elts)} names for {len(values)} values."
                raise self.error(target, what, "Write as many names as values.")
            for part, one in zip(target.elts, values, strict=True):
                self.bind(part, one)
        else:
            raise self.error(target, f"{ast.unparse(target)} cannot be given a value here.", SUPPORTED)
