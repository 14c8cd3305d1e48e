"""A map function written for 0.1.x imports from where things were; that works while its file is loaded, and leaves
nothing behind."""

import sys
from pathlib import Path

import pytest

from xtuner.config.ref import Ref
from xtuner.errors import UserError

OLD = """
from xtuner.dataset.map_fns import openai_map_fn
from xtuner.dataset.map_fns.dataset_map_fns.alpaca_map_fn import alpaca_map_fn
from xtuner.utils import DEFAULT_IMAGE_TOKEN, PROMPT_TEMPLATE, SYSTEM_TEMPLATE
from xtuner.utils.constants import IGNORE_INDEX


def my_fn(row):
    turns = alpaca_map_fn({"instruction": row["q"], "input": "", "output": row["a"]})["conversation"]
    turns[0]["system"] = SYSTEM_TEMPLATE.medical
    assert PROMPT_TEMPLATE.internlm2_chat["INSTRUCTION"] == PROMPT_TEMPLATE["internlm2_chat"].INSTRUCTION
    assert PROMPT_TEMPLATE.internlm2_chat.get("SUFFIX") and DEFAULT_IMAGE_TOKEN == "<image>" and IGNORE_INDEX == -100
    assert openai_map_fn({"messages": 3}) == {"conversation": []}
    return {"conversation": turns}
"""


def modules() -> set[str]:
    return {name for name in sys.modules if name.startswith(("xtuner.utils", "xtuner.dataset.map_fns"))}


def test_old_addresses_work_while_a_users_file_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OLD)
    before, finders = modules(), list(sys.meta_path)
    function = Ref(f"{tmp_path / 'mine.py'}:my_fn").resolve()
    made = function({"q": "cold?", "a": "rest"})["conversation"]
    assert made[0]["input"] == "cold?\n"
    assert made[0]["output"] == "rest"
    assert made[0]["system"]
    assert modules() == before
    assert sys.meta_path == finders
    assert not hasattr(sys.modules["xtuner"], "utils")


def test_what_has_no_equivalent_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from xtuner.utils import guess_load_checkpoint\n")
    with pytest.raises(UserError, match="guess_load_checkpoint"):
        Ref(f"{tmp_path / 'mine.py'}:my_fn").resolve()
    (tmp_path / "other.py").write_text("import xtuner.registry\n")
    with pytest.raises(UserError, match=r"xtuner\.registry"):
        Ref(f"{tmp_path / 'other.py'}:my_fn").resolve()
    assert not modules()
