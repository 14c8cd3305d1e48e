"""The promises about the building itself: floors, cycles, file length, torch-free rooms, nothing patched."""

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xtuner.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "xtuner"

FLOORS = {
    0: {"log", "errors", "network", "program", "version", ""},
    1: {"config", "conversation", "ops", "checkpoint"},
    2: {"dataset", "model", "legacy", "catalog"},
    3: {"objective", "generate"},
    4: {"engine", "export"},
    5: {"apps"},
    6: {"cli"},
    7: {"__main__"},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}

# What each room may enter besides the hall (docs/design.md, "Floors and rooms").
MAY_IMPORT = {
    "config": set(),
    "conversation": set(),
    "ops": set(),
    "checkpoint": set(),
    "legacy": {"config", "conversation"},
    "catalog": {"config"},
    "dataset": {"config", "conversation", "ops"},
    "model": {"config", "conversation", "ops", "checkpoint"},
    "objective": {"config", "ops", "dataset", "model"},
    "generate": {"config", "conversation", "ops", "model", "checkpoint"},
    "engine": {"config", "conversation", "ops", "checkpoint", "dataset", "model", "objective", "generate"},
    "export": {"config", "conversation", "model", "checkpoint"},
    "apps": {"config", "conversation", "checkpoint", "generate", "engine", "export"},
}
TORCH_FREE = ("log", "errors", "network", "program", "version", "config", "conversation", "legacy", "catalog")
ONE_DOOR = {"legacy": {"cli"}, "catalog": {"cli"}}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """`xtuner.model.load` -> `model`; `xtuner` -> ``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, tables: bool = True) -> Iterator[str]:
    """Names of our modules that a file imports, inside functions too; `tables`: also rows of `module:attribute`."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif tables and isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value.split(":")[0]] if node.value.startswith("xtuner.") and ":" in node.value else []
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "xtuner")


def file_of(name: str) -> Path | None:
    """The source file of a module, or of the module that an imported attribute belongs to."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:cut])
        if base.with_suffix(".py").is_file():
            return base.with_suffix(".py")
        if (base / "__init__.py").is_file():
            return base / "__init__.py"
    return None


def test_every_room_has_a_floor() -> None:
    found = {path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    found |= {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert found <= set(FLOOR_OF), found - set(FLOOR_OF)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_go_down(path: Path) -> None:
    here = room_of(module_of(path))
    for name in imports_of(path):
        there = room_of(name) if room_of(name) in FLOOR_OF else ""
        if there == here or FLOOR_OF[here] == FLOOR_OF[there] == 0:
            continue  # within a room, and within the hall
        assert FLOOR_OF[there] < FLOOR_OF[here], f"{here} (floor {FLOOR_OF[here]}) imports {name}"
        if here in MAY_IMPORT and FLOOR_OF[there] > 0:
            assert there in MAY_IMPORT[here], f"{here} may not enter {there}"
        if there in ONE_DOOR:
            assert here in ONE_DOOR[there], f"{there} is entered from {ONE_DOOR[there]} alone"


def test_no_import_cycles() -> None:
    """Also not through imports inside functions. A table's rows are names, not imports of the table."""
    graph = {
        path: {target for name in imports_of(path, tables=False) if (target := file_of(name)) and target != path}
        for path in SOURCES
    }
    done: set[Path] = set()
    trail: list[Path] = []

    def visit(path: Path) -> None:
        if path in trail:
            pytest.fail("cycle: " + " -> ".join(map(module_of, [*trail[trail.index(path) :], path])))
        if path in done:
            return
        trail.append(path)
        for target in sorted(graph.get(path, ())):
            visit(target)
        trail.pop()
        done.add(path)

    for path in SOURCES:
        visit(path)


@pytest.mark.parametrize("path", [p for d in ("xtuner", "tools") for p in sorted((ROOT / d).rglob("*.py"))], ids=str)
def test_files_are_short_and_say_what_they_own(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= 400, "over 400 lines"
    assert ast.get_docstring(ast.parse(text)), "no module docstring"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_nothing_is_assigned_into_foreign_modules(path: Path) -> None:
    """Neither `library.thing = ...` nor `setattr(library, ...)` on anything that was imported from elsewhere."""
    tree = ast.parse(path.read_text("utf-8"))
    foreign: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            foreign |= {(a.asname or a.name).split(".")[0] for a in node.names if not a.name.startswith("xtuner")}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("xtuner"):
            foreign |= {a.asname or a.name for a in node.names}

    def root(node: ast.expr) -> str | None:
        while isinstance(node, ast.Attribute):
            node = node.value
        return node.id if isinstance(node, ast.Name) else None

    for node in ast.walk(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Attribute):
                assert root(target) not in foreign, f"line {node.lineno} assigns into {ast.unparse(target)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            assert root(node.args[0]) not in foreign, f"line {node.lineno} sets into {ast.unparse(node.args[0])}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_code_comes_out_of_data(path: Path) -> None:
    """No eval, exec or pickle, and torch.load only with weights_only=True."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "pickle.load", "pickle.loads"), f"line {node.lineno}"
            if called == "torch.load":
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert options.get("weights_only") == "True", f"line {node.lineno}"


def test_torch_free_rooms_import_no_torch() -> None:
    modules = [module_of(path) for path in SOURCES if room_of(module_of(path)) in TORCH_FREE]
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "sys.exit(', '.join(sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules))) or 0)"
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def in_process(statement: str) -> str:
    """A program that runs a statement which may set `status`, and tells which heavy libraries came in."""
    code = f"import sys\nstatus = 0\ntry:\n    {statement}\nexcept SystemExit as stop: status = stop.code\n"
    heavy = "{'torch', 'transformers', 'datasets', 'numpy', 'peft'}"
    return f"{code}sys.stderr.write(','.join({heavy} & set(sys.modules))); sys.exit(status)"


COMMAND = in_process("from xtuner.cli.main import main; status = main(sys.argv[1:])")
READING = in_process("from xtuner.cli.load import load_run; load_run(sys.argv[1])")
HELP = [[command, "--help"] for command in COMMANDS]


def children_seconds() -> float:
    """Return the processor's time that programs started here have taken."""
    used = os.times()
    return used.children_user + used.children_system


@pytest.mark.parametrize(
    ("code", "words", "limit"),
    [
        *((COMMAND, words, 0.3) for words in [["--help"], ["list-cfg"], ["list-cfg", "-p", "internlm2"], *HELP]),
        (READING, ["internlm2_chat_1_8b_qlora_alpaca_e3"], 0.5),  # pydantic and the recipe book take 0.2 s of it
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_start_up(code: str, words: list[str], limit: float) -> None:
    """No torch, and within the limit in seconds: best of five by the clock or by the processor's time, since the
    machine may be busy with other tests."""
    best = float("inf")
    for _ in range(5):
        start, spent = time.perf_counter(), children_seconds()
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}
        )
        best = min(best, time.perf_counter() - start, children_seconds() - spent)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", f"heavy imports: {done.stderr}"
        if best < limit:
            return
    pytest.fail(f"took {best:.2f} s")


def test_tables_resolve() -> None:
    """Every row `name -> module:attribute` of a room's literal tables leads to something."""
    from xtuner.config.ref import Ref

    rows = 0
    for path in SOURCES:
        if path.name != "__init__.py":
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if isinstance(value, ast.Dict):
                for row in value.values:
                    if isinstance(row, ast.Constant) and isinstance(row.value, str) and row.value.startswith("xtuner."):
                        assert Ref(row.value).resolve() is not None
                        rows += 1
    assert rows > 20
