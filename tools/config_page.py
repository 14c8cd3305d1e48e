"""Writes the tables of settings in docs/en/config.md from `RunSpec` and its docstrings, and its JSON schema.

python tools/config_page.py           write them
python tools/config_page.py --check   exit 1 if the page is not what would be written
"""

import ast
import json
import re
import sys
from pathlib import Path

from xtuner.config.schema import json_schema

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "en" / "config.md"
SCHEMA = ROOT / "docs" / "run_spec.schema.json"
START, END = "<!-- settings: written by tools/config_page.py -->", "<!-- end of settings -->"
FILES = ("model_spec.py", "schedule_spec.py", "spec.py")
PARTS = {
    "model": "ModelSpec",
    "model.lora": "LoraSpec",
    "model.quant": "QuantSpec",
    "model.vision": "VisionSpec",
    "data": "DataSpec",
    "data.train[]": "SourceSpec",
    "data.template": "TemplateSpec",
    "optim": "OptimSpec",
    "schedule": "ScheduleSpec",
    "schedule.chain[]": "ScheduleStep",
    "loop": "LoopSpec",
    "checkpoint": "CheckpointSpec",
    "probe": "ProbeSpec",
    "": "RunSpec",
}


PLAIN = {"PositiveInt": "int", "PositiveFloat": "float", "Decay": "float"}
"""Types with limits -> what they are to a reader."""


def type_of(annotation: ast.expr) -> str:
    """The type as it is written, without limits."""
    return re.sub("|".join(PLAIN), lambda found: PLAIN[found[0]], ast.unparse(annotation))


def default_of(value: ast.expr | None) -> str:
    """The default as it is written, `required` where there is none."""
    if isinstance(value, ast.Call):
        named = {word.arg: word.value for word in value.keywords}
        if "default_factory" in named:
            made = ast.unparse(named["default_factory"])
            return {"list": "[]", "dict": "{}"}.get(made, "its own defaults")
        value = named.get("default")
    return "required" if value is None else ast.unparse(value)


def rows(body: list[ast.stmt]) -> list[str]:
    """One table row per annotated field; the docstring after a field is what it means."""
    found = []
    for statement, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if not isinstance(statement, ast.AnnAssign):
            continue
        said = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            said = " ".join(str(after.value.value).split())
        cells = [f"`{ast.unparse(statement.target)}`", f"`{type_of(statement.annotation)}`"]
        cells += [f"`{default_of(statement.value)}`", said]
        found.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return found


def render_tables() -> str:
    """All parts of `RunSpec`, a table each."""
    trees = [ast.parse((ROOT / "xtuner" / "config" / name).read_text("utf-8")) for name in FILES]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    text = []
    for key, name in PARTS.items():
        said = " ".join((ast.get_docstring(classes[name]) or "").split("\n")[0].split())
        title = f"`{key}`" if key else "At the top"
        text += [f"### {title}", "", said, "", "| setting | type | default | meaning |", "|---|---|---|---|"]
        text += [*rows(classes[name].body), ""]
    return "\n".join(text)


def main() -> int:
    """Write or check both."""
    page, schema = PAGE.read_text("utf-8"), json.dumps(json_schema(), indent=1) + "\n"
    before, rest = page.split(START)
    after = rest.split(END)[1]
    wanted = f"{before}{START}\n\n{render_tables()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        return int(page != wanted or SCHEMA.read_text("utf-8") != schema)
    SCHEMA.write_text(schema, "utf-8")
    PAGE.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
