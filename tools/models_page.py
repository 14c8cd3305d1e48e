"""Writes the tables of models in docs/en/models.md and docs/zh_cn/models.md from what `xtuner model show` knows.

python tools/models_page.py           write them
python tools/models_page.py --check   exit 1 if a page is not what would be written
"""

import sys
from pathlib import Path

from xtuner.checkpoint.kind import KINDS

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- models: written by tools/models_page.py -->", "<!-- end of models -->"
WORDS = {
    "en": {
        "head": ("model", "model_type", "code", "samples in one row", "LoRA by default on"),
        "here": "built in here",
        "theirs": "transformers",
        "ours": "exact",
        "library": "exact, with the library's attention",
        "alone": "one sample a row",
        "none": "name the layers yourself",
    },
    "zh_cn": {
        "head": ("模型", "model_type", "代码", "多个样本共用一行", "LoRA 默认作用于"),
        "here": "本项目内置",
        "theirs": "transformers",
        "ours": "精确",
        "library": "精确（用库自带的注意力）",
        "alone": "一行只放一个样本",
        "none": "请自行指定层名",
    },
}


def render_table(language: str) -> str:
    """One row per kind: families of our own first, then those of transformers, by name."""
    words = WORDS[language]
    lines = ["| " + " | ".join(words["head"]) + " |", "|" + "---|" * len(words["head"])]
    for model_type, kind in sorted(KINDS.items(), key=lambda row: (not row[1].built_in, row[1].name.lower())):
        targets = ", ".join(f"`{name}`" for name in kind.targets) or str(words["none"])
        code = words["here" if kind.built_in else "theirs"]
        lines.append(f"| {kind.name} | `{model_type}` | {code} | {words[kind.packing]} | {targets} |")
    return "\n".join(lines)


def main() -> int:
    """Write or check both pages."""
    for language in WORDS:
        page = ROOT / "docs" / language / "models.md"
        text = page.read_text("utf-8")
        before, rest = text.split(START)
        wanted = f"{before}{START}\n\n{render_table(language)}\n\n{END}{rest.split(END)[1]}"
        if "--check" not in sys.argv[1:]:
            page.write_text(wanted, "utf-8")
        elif text != wanted:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
