"""Reads YAML into a `Table` with the line of every key, and writes it; `1e-4` is a number, dates and `no` are texts."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from xtuner.config.table import Table
from xtuner.errors import UserError

NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)?")
KINDS = ("str", "int", "float", "bool", "null", "timestamp", "value", "merge", "map", "seq")
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in KINDS}
MOST_VALUES = 100_000
"""Values of a config at most, aliases written out: a few lines of them can stand for more than a memory holds."""
WORDS: dict[str, Any] = {
    "": None,
    "~": None,
    "null": None,
    "true": True,
    "false": False,
    ".inf": float("inf"),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}


def read_yaml(text: str, file: str) -> Table:
    """Read a YAML mapping.

    Raises:
        UserError: not YAML, a key twice, a tag, or not a mapping; says file and line.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        fix = "Check the indentation, and put texts with a colon, # or ? into quotes."
        raise UserError(f"{file}:{line}: this is not YAML: {error.problem}.", fix) from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: this is not YAML: {error}.", "Save it as a text in UTF-8.") from error
    if not isinstance(node, yaml.MappingNode):
        raise UserError(
            f"{file}: a config is made of `key: value` lines; this file is not.", "Begin with: model: {path: FOLDER}"
        )
    try:
        _count(node, file, {})
        return _value(node, file)
    except RecursionError as error:
        raise UserError(f"{file}: an anchor of this file contains itself.", "Write the value out.") from error


def _count(node: yaml.Node, file: str, known: dict[int, int]) -> int:
    """Return how many values a node has with its aliases written out, of which each is counted only once.

    Raises:
        UserError: more than a config can need.
    """
    if id(node) not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_count(part, file, known) for part in parts)
        if known[id(node)] > MOST_VALUES:
            where = f"{file}:{node.start_mark.line + 1}"
            raise UserError(f"{where}: this is more than {MOST_VALUES} values.", "Use fewer aliases (*name).")
    return known[id(node)]


def _value(node: yaml.Node, file: str) -> Any:
    if node.tag not in PLAIN_TAGS:
        where = f"{file}:{node.start_mark.line + 1}"
        raise UserError(f"{where}: the tag {node.tag} is not allowed in a config.", "Write the plain value.")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, file)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, file) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return node.value if node.style else plain_value(node.value)


def _mapping(node: yaml.MappingNode, file: str) -> Table:
    table = Table(file=file, line=node.start_mark.line + 1)
    written: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{file}:{line}: a key is a single word.", "Write key: value.")
        key = str(key_node.value)
        if key in written:
            raise UserError(f"{file}:{line}: {key} is given twice.", f"The first one is in line {written[key]}.")
        written[key] = line
        if key == "<<" and isinstance(value_node, yaml.MappingNode):
            base = _mapping(value_node, file)
            table.join(Table({name: base[name] for name in base if name not in table}, file=file, line=line))
        else:
            table.put(key, _value(value_node, file), line)
    return table


def plain_value(text: str) -> Any:
    """Return what an unquoted word stands for: a number, true, false, null, or the word itself."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if NUMBER.fullmatch(text):
        return float(text) if re.search(r"[.eE]", text) else int(text)
    return text


def render_yaml(values: Mapping[str, Any]) -> str:
    """Write a mapping so that `read_yaml` reads it back the same."""
    # innermost lists and dicts stand in one line, long texts are not broken
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=None)


class _Dumper(yaml.SafeDumper):
    """Writes texts so that `read_yaml` reads them as texts: in quotes when they look like something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if "\n" in text else None if isinstance(plain_value(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
# options of a free form, such as a whole DeepSpeed config, stay the tables that were read
_Dumper.add_representer(Table, lambda dumper, table: dumper.represent_dict(dict(table)))
