"""docs/*/models.md say what the table of kinds says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_tables_of_models_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "models_page.py", "--check"])
    assert done.returncode == 0, "type: python tools/models_page.py"
