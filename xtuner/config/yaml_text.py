"""Reads YAML into a `Table` with the line of every key; `1e-4` is a number, dates and `no` are texts."""

import re
from typing import Any

import yaml

from xtuner.config.table import Table
from xtuner.errors import UserError

NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)?")
KINDS = ("str", "int", "float", "bool", "null", "timestamp", "value", "merge", "map", "seq")
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in KINDS}
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
        raise UserError(f"{file}:{line}: this is not YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: this is not YAML: {error}.") from error
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{file}: a config is a list of `key: value` lines; this file is not.")
    try:
        return _value(node, file)
    except RecursionError as error:
        raise UserError(f"{file}: an anchor of this file contains itself.") from error


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
            raise UserError(f"{file}:{line}: a key is a single word.")
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
