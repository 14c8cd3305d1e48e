"""Where 0.1.x kept what map functions import: offered to a user's file while it is loaded, and at no other time."""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WORDS, FUNCTIONS = "xtuner.conversation.old_word", "xtuner.dataset.old_function"
MAP_FUNCTIONS = "xtuner.dataset.map_fns"
ADDRESSES: dict[str, str] = {
    "xtuner.utils": WORDS,
    "xtuner.utils.constants": WORDS,
    "xtuner.utils.templates": WORDS,
    MAP_FUNCTIONS: FUNCTIONS,
    f"{MAP_FUNCTIONS}.dataset_map_fns": FUNCTIONS,
}
"""Module of 0.1.x -> the module that has the same things; the modules of single map functions lie below the last."""


class OldAddresses(MetaPathFinder, Loader):
    """Finds modules of 0.1.x where nothing else is found; what is in them is looked up when it is asked for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for an old address."""
        known = fullname in ADDRESSES or fullname.rpartition(".")[0] in (
            MAP_FUNCTIONS,
            f"{MAP_FUNCTIONS}.dataset_map_fns",
        )
        return ModuleSpec(fullname, self, is_package=fullname in ADDRESSES) if known else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module: its names are those of the one that stands for it."""
        home = ADDRESSES.get(module.__name__, FUNCTIONS)

        def look_up(name: str) -> Any:
            return getattr(importlib.import_module(home), name)

        module.__dict__["__getattr__"] = look_up


@contextlib.contextmanager
def old_addresses() -> Iterator[None]:
    """Let imports of old addresses work until the block ends; nothing of them stays among the modules."""
    finder = OldAddresses()
    before = set(sys.modules)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            spec = getattr(sys.modules[name], "__spec__", None)
            if spec is not None and spec.loader is finder:
                del sys.modules[name]
                parent, _, last = name.rpartition(".")
                vars(sys.modules[parent]).pop(last, None) if parent in sys.modules else None
