"""Writes the tables of docs/benchmarks.md and their pictures from benchmarks/results.

    python benchmarks/page.py            write both
    python benchmarks/page.py --check    exit code 1 if they are not as the results are

A file of results is called DATE-CARD-TABLE.jsonl; in the page a table stands between `<!-- table: TABLE -->` and
`<!-- end -->`. Of several files of one table the latest counts.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.chart import Bar, Group, render_chart  # noqa: E402
from benchmarks.workload import CHAT, read_case  # noqa: E402

RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/benchmarks.md"
PICTURES = ROOT / "docs/benchmarks"
SECTION = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
TOOLS = {
    "hf": "transformers + PEFT",
    "liger": "+ Liger",
    "unsloth": "Unsloth",
    "trl": "TRL",
    "unsloth-trl": "Unsloth + TRL",
    "xtuner": "XTuner",
}
METHODS = {"lora": "LoRA", "qlora": "QLoRA", "fp8": "LoRA, FP8 base", "int8": "LoRA, INT8 base", "full": "full"}
MODELS = {"llama3-8b": "Llama-3-8B", "llama2-7b": "Llama-2-7B", "internlm2-1.8b": "1.8B", "toy": "toy"}
ALIKE = ("fp8",)
"""Methods that are another way to do LoRA, and are compared with it."""
HIDDEN = ("card", "optim", "rows", "segment", "tries")
Row = dict[str, Any]


def main(words: list[str] | None = None) -> int:
    """Write or check."""
    check = (sys.argv[1:] if words is None else words) == ["--check"]
    stale = [path for path, text in render_all().items() if not path.is_file() or path.read_text("utf-8") != text]
    if check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not as the results are: python benchmarks/page.py", file=sys.stderr)
        return 1 if stale else 0
    PICTURES.mkdir(exist_ok=True)
    for path, text in render_all().items():
        path.write_text(text, "utf-8")
    return 0


def render_all() -> dict[Path, str]:
    """Return the text of every file that is made of results."""
    tables = load_results(RESULTS)
    files: dict[Path, str] = {}

    def section(match: re.Match[str]) -> str:
        name = match[1]
        if name not in tables:
            return f"<!-- table: {name} -->\nNot measured yet.\n<!-- end -->"
        files_of, rows = tables[name]
        title, render, groups = KINDS[name]
        files[PICTURES / f"{name}.svg"] = render_chart(title, groups(rows))
        words = f"Results: {', '.join(f'[{file}](../benchmarks/results/{file})' for file in files_of)}.{_about(rows)}"
        parts = [f"![{title}](benchmarks/{name}.svg)", render(rows), words]
        return f"<!-- table: {name} -->\n" + "\n\n".join(parts) + "\n<!-- end -->"

    files[PAGE] = SECTION.sub(section, PAGE.read_text("utf-8"))
    return files


def load_results(folder: Path) -> dict[str, tuple[list[str], list[Row]]]:
    """Return table -> names of files and rows, of the latest file of each; `plan` is all rows that have one."""
    found: dict[str, tuple[list[str], list[Row]]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        table = file.stem.rpartition("-")[2]
        if table in KINDS:
            found[table] = [file.name], [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]
    planned = {name: [row for row in rows if "predicted" in row] for name, (_, rows) in found.items()}
    names = [name for name, rows in planned.items() if rows]
    if names:
        rows = [row for name in names for row in planned[name]]
        found["plan"] = [found[name][0][0] for name in names], rows
    return found


def speed_table(rows: list[Row]) -> str:
    """Return tokens/s, memory and loss of each case."""
    padding = any(row.get("real_tokens", 1) < 1 for row in rows)
    head = ["case", "tool", "tokens/s", "MFU", "allocated GiB", "reserved GiB", "last loss"]
    lines: list[list[str]] = []
    earlier = ""
    order = list(dict.fromkeys(name_case(row, alike=True) for row in rows))
    for row in sorted(rows, key=lambda row: order.index(name_case(row, alike=True))):
        what = name_case(row, alike=True)
        cells = [what if what != earlier else "", name_tool(row, rows)]
        if "failed" in row:
            cells += [row["failed"], *[""] * (len(head) - 3)]
        else:
            figures = [f"{row['tokens_per_second']:,}", f"{row['mfu']:.0%}".replace("%", " %")]
            figures += [f"{row[key]:.2f}" for key in ("allocated_gib", "reserved_gib")]
            cells += [*figures, f"{row['losses'][-1]:.4f}"]
        if padding:
            cells.append(f"{row['real_tokens']:.0%}".replace("%", " %") if "real_tokens" in row else "")
        lines.append(cells)
        earlier = what
    return _table([*head, *(["real tokens"] if padding else [])], lines, words=2)


def speed_groups(rows: list[Row]) -> list[Group]:
    """Return a group of bars for each case."""
    groups: dict[str, list[Bar]] = {}
    for row in rows:
        speed = row.get("tokens_per_second")
        memory = f", {row['allocated_gib']:.1f} GiB" if row.get("allocated_gib") else ""
        words = f"{speed:,}{memory}" if speed else str(row.get("failed"))[:40]
        bar = Bar(name_tool(row, rows).replace("*", ""), speed, words, _is_ours(row))
        groups.setdefault(name_case(row, alike=True), []).append(bar)
    return [Group(title, tuple(bars)) for title, bars in groups.items()]


def longest_table(rows: list[Row]) -> str:
    """Return how many tokens fit on each card."""
    head = ["card", "tool", "tokens trained", "did not fit", "by a line", "by the plan", "GiB"]
    lines = []
    for row in rows:
        cells = [_card(row), name_tool(row, rows)]
        if "failed" in row:
            lines.append([*cells, row["failed"], *[""] * 4])
        else:
            counts = [f"{row[key]:,}" if row.get(key) else "" for key in ("longest", "refused", "line", "plan")]
            lines.append([*cells, *counts, f"{row.get('allocated_gib', 0):.2f}"])
    return _table(head, lines, words=2)


def longest_groups(rows: list[Row]) -> list[Group]:
    """Return a group of bars for each card."""
    groups: dict[str, list[Bar]] = {}
    for row in rows:
        longest = row.get("longest")
        words = f"{longest:,} tokens" if longest else str(row.get("failed", "none fits"))[:40]
        groups.setdefault(_card(row), []).append(
            Bar(name_tool(row, rows).replace("*", ""), longest, words, _is_ours(row))
        )
    return [Group(title, tuple(bars)) for title, bars in groups.items()]


def plan_table(rows: list[Row]) -> str:
    """Return prediction and measurement side by side."""
    head = ["case", "GiB, plan", "measured", "", "tokens/s, plan", "measured", ""]
    lines = []
    for row in rows:
        what = f"{name_case(row)}, {_settings(row) or 'as planned'}"
        predicted = row.get("predicted")
        if "failed" in row or predicted is None:
            lines.append([what, *[""] * 5, row.get("failed", "")])
            continue
        gib, speed = (predicted["allocated_gib"], row["allocated_gib"]), row["tokens_per_second"]
        pairs = [f"{gib[0]:.2f}", f"{gib[1]:.2f}", f"{gib[0] / gib[1] - 1:+.0%}"]
        guessed = predicted["tokens_per_second"]
        lines.append([what, *pairs, f"{guessed:,}", f"{speed:,}", f"{guessed / speed - 1:+.0%}"])
    return _table(head, lines, words=1).replace("%", " %")


def plan_groups(rows: list[Row]) -> list[Group]:
    """Return bars of predicted over measured memory and speed, in percent."""
    groups = []
    for key, title in (("allocated_gib", "peak of memory"), ("tokens_per_second", "tokens/s")):
        bars = []
        for row in (row for row in rows if row.get("predicted") and "failed" not in row):
            share = 100 * row["predicted"][key] / row[key]
            bars.append(Bar(f"{name_case(row)}, {_settings(row)}"[:40], share, f"{share:.0f} %", ours=True))
        groups.append(Group(f"{title}: predicted, in percent of what was measured", tuple(bars)))
    return groups


PHASES = ("python_and_libraries", "data_and_plan", "model", "answers_before", "first_iteration", "to_first_iteration")


def startup_table(rows: list[Row]) -> str:
    """Return the seconds of each phase."""
    lines = [[row["case"], *(f"{row[key]:.1f}" if key in row else row["failed"] for key in PHASES)] for row in rows]
    return _table(["", *(key.replace("_", " ") for key in PHASES)], lines, words=1)


def startup_groups(rows: list[Row]) -> list[Group]:
    """Return the phases of each start as bars."""
    groups = []
    for row in (row for row in rows if "failed" not in row):
        bars = (Bar(key.replace("_", " "), row[key], f"{row[key]:.1f} s", key == PHASES[-1]) for key in PHASES)
        groups.append(Group(row["case"], tuple(bars)))
    return groups


def name_case(row: Row, *, alike: bool = False) -> str:
    """Say what is trained; `alike`: under the name of what it is compared with."""
    case = read_case(row["case"])
    method = "lora" if alike and case.method in ALIKE else case.method
    size = case.sizes[0].replace("x", " x ")
    if size.startswith(CHAT):
        size = "chat samples"
    words = f"{MODELS[case.shape]} {METHODS[method]}, {size}"
    return f"{words} on a card of {case.settings['card'].replace('GB', ' GB')}" if "card" in case.settings else words


def name_tool(row: Row, rows: list[Row]) -> str:
    """Say with what, and with which settings; with versions where they are not those of the first row."""
    case = read_case(row["case"])
    details = [_settings(row)] if _settings(row) else []
    if case.sizes[0].startswith(CHAT) and case.tool != "xtuner" and "packing" not in case.settings:
        details.append(f"{case.sizes[0].removeprefix(CHAT)} padded")
    first, own = rows[0].get("versions", {}), row.get("versions", {})
    details += [f"{name} {own[name]}" for name in ("torch", "transformers") if own.get(name) != first.get(name)]
    name = f"**{TOOLS[case.tool]}**" if _is_ours(row) else TOOLS[case.tool]
    return ", ".join([name, *details])


def _is_ours(row: Row) -> bool:
    return read_case(row["case"]).tool == "xtuner"


def _settings(row: Row) -> str:
    case = read_case(row["case"])
    shown = [f"{key}={value}" for key, value in case.settings.items() if key not in HIDDEN]
    if "recompute" in row and "recompute" not in case.settings and row["recompute"] is not None:
        shown.insert(0, f"recompute={row['recompute']}")
    return ", ".join([*(["FP8 base"] if case.method in ALIKE else []), *shown])


def _card(row: Row) -> str:
    return read_case(row["case"]).settings["card"].replace("GB", " GB")


def _about(rows: list[Row]) -> str:
    first = next((row for row in rows if "versions" in row), None)
    if first is None:
        return ""
    return f" {first['card']}; " + ", ".join(f"{name} {version}" for name, version in first["versions"].items()) + "."


def _table(head: list[str], lines: Iterable[list[str]], *, words: int) -> str:
    """Return a table whose columns after the first `words` are numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *lines])


Kind = tuple[str, Callable[[list[Row]], str], Callable[[list[Row]], list[Group]]]
KINDS: dict[str, Kind] = {
    "main": ("Tokens a second on one card", speed_table, speed_groups),
    "short": ("Tokens a second when memory is short", speed_table, speed_groups),
    "chat": ("Real tokens a second, short chat samples", speed_table, speed_groups),
    "lengths": ("Tokens a second by length", speed_table, speed_groups),
    "cards": ("Tokens a second on small cards", speed_table, speed_groups),
    "longest": ("Tokens of the longest sample that fits", longest_table, longest_groups),
    "startup": ("Seconds from the command to the first iteration", startup_table, startup_groups),
    "plan": ("What the plan predicts, and what was measured", plan_table, plan_groups),
}
"""Table -> title, how it is written, how it is drawn."""


if __name__ == "__main__":
    sys.exit(main())
