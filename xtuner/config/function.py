"""What a Python config may call: a short list of harmless functions and methods."""

import copy
import glob
import math
import os
import re
import string
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

from xtuner.config.ref import Ref

LARGEST = 10_000_000
"""Items of a list or letters of a text that a config can need at most."""


def bounded_range(*bounds: int) -> range:
    """`range`, but never so long that a list of it fills the memory."""
    numbers = range(*bounds)
    if len(numbers) > LARGEST:
        raise ValueError("the range is too long")
    return numbers


def has_attribute(thing: Any, name: str) -> bool:
    """`hasattr` without looking: what is imported is taken to have everything."""
    return isinstance(thing, Ref) or (isinstance(thing, dict) and name in thing)


BUILTINS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (list, tuple, set, int, float, str, bool, len, min, max, round, abs, sum, sorted, any, all)
} | {"range": bounded_range, "enumerate": enumerate, "zip": zip, "reversed": reversed, "hasattr": has_attribute}

# imported functions that have an answer without importing anything
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "os.path.join": os.path.join,
    "os.path.dirname": os.path.dirname,
    "os.path.basename": os.path.basename,
    "os.path.abspath": os.path.abspath,
    "os.path.expanduser": os.path.expanduser,
    "os.path.exists": os.path.exists,
    "os.path.isfile": os.path.isfile,
    "os.path.isdir": os.path.isdir,
    "os.path.splitext": os.path.splitext,
    "os.path.normpath": os.path.normpath,
    "os.path.realpath": os.path.realpath,
    "os.path.relpath": os.path.relpath,
    "os.path.expandvars": os.path.expandvars,
    "os.path.isabs": os.path.isabs,
    "os.path.split": os.path.split,
    "os.path.commonpath": os.path.commonpath,
    "os.listdir": os.listdir,
    "os.getcwd": os.getcwd,
    "glob.glob": glob.glob,
    "pathlib.Path": Path,
    "pathlib.Path.cwd": Path.cwd,
    "pathlib.Path.home": Path.home,
    "os.getenv": os.getenv,
    "os.environ.get": os.environ.get,
    "time.strftime": time.strftime,
    "datetime.datetime.now": datetime.now,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.sqrt": math.sqrt,
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
}

# imported names that stand for a value
CONSTANTS: dict[str, Any] = {"math.pi": math.pi, "math.inf": math.inf, "math.e": math.e, "os.sep": os.sep}

# classes of other libraries that are dicts
DICTS = (
    *("mmengine.ConfigDict", "mmengine.config.ConfigDict", "mmengine.config.config.ConfigDict", "addict.Dict"),
    *("collections.OrderedDict", "easydict.EasyDict"),
)

METHODS: dict[type, tuple[str, ...]] = {
    datetime: ("isoformat", "strftime"),
    str: (
        *("capitalize", "endswith", "format", "join", "lower", "lstrip", "removeprefix", "removesuffix", "replace"),
        *("rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper"),
    ),
    list: ("append", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"),
    tuple: ("count", "index"),
    dict: ("copy", "get", "items", "keys", "pop", "setdefault", "update", "values"),
    PurePath: (
        "absolute",
        "as_posix",
        "exists",
        "expanduser",
        "is_dir",
        "is_file",
        "joinpath",
        "resolve",
        "with_suffix",
    ),
}
PATH_PARTS = ("name", "parent", "stem", "suffix")
"""Attributes of a path that a config may use."""


def check_width(form: str) -> None:
    """Refuse a field width that would fill the memory."""
    if re.search(r"\d{4}", form):
        raise ValueError("the field is too wide")


def check_format(text: str) -> None:
    """Refuse `str.format` fields that reach into objects; plain names and numbers are fine."""
    for _, field, form, _ in string.Formatter().parse(text):
        check_width(form or "")
        if field and not re.fullmatch(r"\w*", field):
            raise ValueError(f"the field {{{field}}} is not a plain name")


def check_length(length: int) -> None:
    """Refuse a text or list that would fill the memory."""
    if length > LARGEST:
        raise ValueError("the result is too large for a config")


def check_size(function: Callable[..., Any], given: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuse a call of a text's or list's method whose result would fill the memory."""
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    if isinstance(owner, list) and name == "extend" and given and hasattr(given[0], "__len__"):
        check_length(len(owner) + len(given[0]))
    if not isinstance(owner, str):
        return
    if name == "replace" and len(given) > 1:
        times = owner.count(given[0]) if len(given) < 3 or given[2] < 0 else given[2]
        check_length(len(owner) + times * len(given[1]))
    elif name == "join" and given:
        parts = given[0] if isinstance(given[0], list | tuple | set | dict | str) else ()
        check_length(sum(len(part) for part in parts) + len(owner) * len(parts))
    elif name == "format":
        values = [len(str(value)) for value in (*given, *named.values())]
        check_length(len(owner) + owner.count("{") * max(values, default=0))
