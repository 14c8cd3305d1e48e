"""docs/compat.md says what the program does with the command lines and edits of the courses."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "compat_page.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, f"type: python tools/compat_page.py\n{done.stderr}"
