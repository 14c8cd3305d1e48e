"""The documentation says what the code does."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from xtuner.config.check import to_spec
from xtuner.config.reader import read_text
from xtuner.conversation.builtin import TEMPLATES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_tables_of_settings_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "config_page.py", "--check"])
    assert done.returncode == 0, "type: python tools/config_page.py"


def test_templates_are_listed() -> None:
    for page in ("docs/en/config.md", "docs/zh_cn/config.md"):
        listed = (ROOT / page).read_text("utf-8").rpartition("\n\n")[2].replace("\n", " ").split(", ")
        assert {name.strip() for name in listed} == set(TEMPLATES) - {"plain"}


def test_yaml_examples_are_configs() -> None:
    examples = [
        (page, textwrap.dedent(text))
        for page in PAGES
        for text in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]
    assert len(examples) >= 2
    for page, text in examples:
        to_spec(read_text(text, page, "yaml").values)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_both_languages_have_every_page() -> None:
    names = [{page.name for page in (ROOT / "docs" / language).glob("*.md")} for language in ("en", "zh_cn")]
    assert names[0] == names[1]
