"""A dotted name in a config: a name, not an import, until someone asks for the thing itself."""

import ast
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtuner.config.old_address import old_addresses
from xtuner.config.own_code import PartLoader, is_config, needed_lines
from xtuner.errors import UserError


@dataclass(frozen=True)
class Ref:
    """A name such as `transformers.AutoTokenizer.from_pretrained`, `package.module:attribute` or `file.py:attribute`.

    Reading a config only makes `Ref`s; nothing is imported before `resolve`.
    """

    path: str

    def __str__(self) -> str:
        return self.path

    def __getattr__(self, name: str) -> "Ref":
        if name.startswith("__"):
            raise AttributeError(name)
        return Ref(f"{self.path}.{name}")

    @property
    def name(self) -> str:
        """The last part of the dotted name."""
        return self.path.replace(":", ".").rsplit(".", 1)[-1]

    def resolve(self) -> Any:
        """Import the thing that is named.

        Raises:
            UserError: no such file, module or attribute.
        """
        head, colon, attribute = self.path.rpartition(":")
        if colon and head.endswith(".py"):
            return _attribute(_module_from_file(Path(head), attribute), attribute, self.path)
        if colon:
            return _attribute(_import(head, self.path), attribute, self.path)
        parts = self.path.split(".")
        for cut in range(len(parts), 0, -1):
            module = ".".join(parts[:cut])
            try:
                found = importlib.util.find_spec(module)
            except (ImportError, ValueError, AttributeError):
                found = None
            if found is not None:
                return _attribute(_import(module, self.path), ".".join(parts[cut:]), self.path)
        raise UserError(f"Nothing is installed under the name {self.path}.", "Check the spelling of the import.")


def _import(module: str, path: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{path} cannot be imported: {error}.", "Check the spelling of the import.") from error


def _attribute(thing: Any, dotted: str, path: str) -> Any:
    for part in filter(None, dotted.split(".")):
        if not hasattr(thing, part):
            raise UserError(f"{path} cannot be found: there is no {part} in {getattr(thing, '__name__', thing)}.")
        thing = getattr(thing, part)
    return thing


def _module_from_file(file: Path, name: str) -> Any:
    if not file.is_file():
        raise UserError(f"There is no file {file}.", "Give the path of a .py file, then a colon and a name in it.")
    spec = importlib.util.spec_from_file_location(file.stem, file, loader=_loader(file, name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with old_addresses():
            spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's program does
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"{file} fails when it is imported ({said}).", f"Try it: python {file}") from error
    return module


def _loader(file: Path, name: str) -> PartLoader | None:
    """Return how `name` of a config is loaded; None: the file is one of functions, and is loaded as a whole."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError):
        return None  # the import will say what is wrong
    return PartLoader(file, needed_lines(text, tree, name.split(".")[0])) if is_config(tree) else None
