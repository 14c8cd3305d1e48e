"""Reads a pickle as data: its instructions are walked, none of them imports or calls what the pickle names.

The standard library's `pickletools` splits the bytes into instructions; here they move values on a stack. A class or
function that the pickle names is looked up in two tables of the caller; of one that is in neither a `Foreign` stands
in the result, which does nothing. Names from Python's own library (`os.system`, `builtins.eval`, ...) are
refused: no checkpoint needs them. Nothing here recurses, so nesting costs memory and no stack.
"""

import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch

HARMLESS_MODULES = ("collections", "datetime", "decimal", "pathlib", "uuid")
HARMLESS = {
    *("builtins.getattr", "builtins.object", "builtins.set", "builtins.frozenset", "builtins.bytearray"),
    *("builtins.complex", "builtins.slice", "builtins.range", "builtins.int", "builtins.float", "builtins.str"),
    *("builtins.bool", "builtins.bytes", "builtins.list", "builtins.dict", "builtins.tuple", "builtins.type"),
    *("_codecs.encode", "argparse.Namespace", "types.SimpleNamespace", "functools.partial"),
}
"""Names of Python's own library that honest pickles hold. They too only stand in the result."""
SCALARS = (str, int, float, bool, bytes, type(None))


class Forbidden(ValueError):
    """The pickle names something that opening a checkpoint must not touch; the message is its name."""


class Malformed(ValueError):
    """These bytes are no pickle, or use what no checkpoint uses."""


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names, as its name."""

    name: str


@dataclass(eq=False)
class Foreign:
    """What stands in place of an object whose class is not known here: the parts it would have been made of."""

    name: str
    """Of its class."""
    arguments: Any = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    """Of a list or set its elements, of a dictionary (key, value)."""


def read_pickle(
    data: BinaryIO | bytes,
    functions: Mapping[str, Callable[..., Any]],
    constants: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Return what a pickle describes, made of plain Python values, what `functions` make, and `Foreign` objects.

    `functions`: what a name that the pickle calls stands for; called with the arguments in the pickle, they must
    check them. `constants`: what a name stands for that the pickle mentions. `persistent` gives the object of a
    persistent id. Dictionaries of any class known to Python become plain ones.

    Raises:
        Forbidden: it names something of Python's own library that has no place in a checkpoint.
        Malformed: it is cut short, not a pickle, or of a kind that is not written any more.
    """
    walk = _Walk({**FUNCTIONS, **functions}, constants, persistent)
    try:
        for instruction, argument, _ in pickletools.genops(data):
            if instruction.name == "STOP":
                return walk.pop()
            walk.step(instruction.name, argument)
    except (Forbidden, Malformed):
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error
    raise Malformed("it has no end")


def _set(items: Any = ()) -> set[Any]:
    return {_key(item) for item in items}


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "utf-8"):
        raise Malformed(f"the encoding {encoding}")
    return text.encode(encoding)


def _empty(*_: Any) -> dict[Any, Any]:
    return {}


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _empty,
    "collections.defaultdict": _empty,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _bytes,
    "_codecs.encode": _bytes,
}

PUSHED = {
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""Instructions whose argument is the value."""
MADE: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
IGNORED = {"PROTO", "FRAME"}


class _Walk:
    """The stack, the marks in it and the memo of a pickle, and what each instruction does to them."""

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        constants: Mapping[str, Any],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.functions = functions
        self.constants = constants
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def step(self, name: str, argument: Any) -> None:
        """Do one instruction."""
        if name in PUSHED:
            self.stack.append(argument)
        elif name in MADE:
            self.stack.append(MADE[name]())
        elif name not in IGNORED:
            method = STEPS.get(name)
            if method is None:
                raise Malformed(f"the instruction {name}")
            method(self, argument)

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.below.pop()
        return items

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise Malformed("an empty stack")
        self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(_key(item) for item in items)
        elif isinstance(target, Foreign):
            target.items.extend(items)
        else:
            raise Malformed(f"elements of a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        pairs = list(_pairs(items))
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update((_key(key), value) for key, value in pairs)
        elif isinstance(target, Foreign):
            target.items.extend(pairs)
        else:
            raise Malformed(f"keys of a {type(target).__name__}")

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def name(self, module: str, name: str) -> None:
        """A class or function; modules have their names of Python 2 in pickles of protocol 2, which torch writes."""
        self.stack.append(self._named(f"{IMPORT_MAPPING.get(module, module)}.{name}"))

    def _named(self, name: str) -> Any:
        module = name.partition(".")[0]
        known = name in HARMLESS or module in HARMLESS_MODULES
        if not known and (module in sys.stdlib_module_names or not module):
            raise Forbidden(name)
        return self.constants.get(name, Global(name))

    def stack_name(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Malformed("a name that is no text")
        self.name(module, name)

    def call(self, _: Any) -> None:
        """REDUCE and NEWOBJ: what the pickle wants called, is looked up or stands for itself."""
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Global) or not isinstance(arguments, tuple):
            raise Malformed("a call of what is no name")
        if called.name == "builtins.getattr":
            owner, attribute = arguments
            if not (isinstance(owner, Global) and isinstance(attribute, str)):
                raise Forbidden(called.name)
            self.stack.append(self._named(f"{owner.name}.{attribute}"))
        elif called.name in self.functions:
            self.stack.append(self.functions[called.name](*arguments))
        else:
            self.stack.append(Foreign(called.name, arguments))

    def call_with_names(self, _: Any) -> None:
        """NEWOBJ_EX: arguments with names."""
        named, arguments, called = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if not isinstance(called, Global):
            raise Malformed("a call of what is no name")
        self.stack.append(Foreign(called.name, (arguments, named)))

    def build(self, _: Any) -> None:
        """Give an object its state; what a dictionary or tensor has besides its content is left out."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Foreign):
            target.state = state
        elif not isinstance(target, dict | torch.Tensor):
            raise Malformed(f"the state of a {type(target).__name__}")

    def object_of_id(self, _: Any) -> None:
        if self.persistent is None:
            raise Malformed("a persistent id")
        self.stack.append(self.persistent(self.stack.pop()))


def _key(value: Any) -> Any:
    """Refuse keys whose hash would walk a nesting of any depth (in C, where that ends the process)."""
    parts = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(part, (*SCALARS, Global, Foreign)) for part in parts):
        raise Malformed("a nested key")
    return value


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    if len(items) % 2:
        raise Malformed("a key without a value")
    return zip(items[::2], items[1::2], strict=True)


STEPS: Mapping[str, Callable[[_Walk, Any], Any]] = {
    "MARK": _Walk.mark,
    "TUPLE": lambda walk, _: walk.push(tuple(walk.since_mark())),
    "TUPLE1": lambda walk, _: walk.tuple_of(1),
    "TUPLE2": lambda walk, _: walk.tuple_of(2),
    "TUPLE3": lambda walk, _: walk.tuple_of(3),
    "LIST": lambda walk, _: walk.push(walk.since_mark()),
    "DICT": lambda walk, _: walk.push({_key(key): value for key, value in _pairs(walk.since_mark())}),
    "FROZENSET": lambda walk, _: walk.push(_set(walk.since_mark())),
    "APPEND": lambda walk, _: walk.append([walk.pop()]),
    "APPENDS": lambda walk, _: walk.append(walk.since_mark()),
    "ADDITEMS": lambda walk, _: walk.append(walk.since_mark()),
    "SETITEM": lambda walk, _: walk.set_items([walk.pop(), walk.pop()][::-1]),
    "SETITEMS": lambda walk, _: walk.set_items(walk.since_mark()),
    "POP": lambda walk, _: walk.stack.pop() if walk.stack else walk.since_mark(),
    "POP_MARK": lambda walk, _: walk.since_mark(),
    "DUP": lambda walk, _: walk.push(walk.stack[-1]),
    "GET": lambda walk, place: walk.push(walk.memo[place]),
    "BINGET": lambda walk, place: walk.push(walk.memo[place]),
    "LONG_BINGET": lambda walk, place: walk.push(walk.memo[place]),
    "PUT": lambda walk, place: walk.remember(place),
    "BINPUT": lambda walk, place: walk.remember(place),
    "LONG_BINPUT": lambda walk, place: walk.remember(place),
    "MEMOIZE": lambda walk, _: walk.remember(len(walk.memo)),
    "GLOBAL": lambda walk, names: walk.name(*names.split(" ", 1)),
    "STACK_GLOBAL": _Walk.stack_name,
    "REDUCE": _Walk.call,
    "NEWOBJ": _Walk.call,
    "NEWOBJ_EX": _Walk.call_with_names,
    "BUILD": _Walk.build,
    "BINPERSID": _Walk.object_of_id,
}
"""What no checkpoint uses (EXT1, INST, OBJ, PERSID, buffers out of band) is not here, and refused."""
