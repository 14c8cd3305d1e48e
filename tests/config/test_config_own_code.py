"""Functions written into a config: names while it is read, loaded with what they need and nothing else."""

import sys
from pathlib import Path

import pytest

from xtuner.config.dump import dump_python
from xtuner.config.reader import read_config
from xtuner.config.ref import Ref
from xtuner.errors import UserError

CONFIG = '''
import no_such_library
from no_such_library import Trainer
import re
from xtuner.dataset.map_fns import openai_map_fn

open('sprung', 'w')
SEPARATOR = '|'
WORDS = {'q': 'question', 'a': 'answer'}
if True:
    ENDING = '?'


def word(key):
    return WORDS[key]


@staticmethod
def no_one_asks():
    return Trainer()


class Base:
    ending = ENDING


def to_turns(row):
    """Return turns."""
    text = SEPARATOR.join([re.sub('x', 'y', row[word('q')]) + Base.ending, row[word('a')]])
    assert openai_map_fn({'messages': 3}) == {'conversation': []}
    return {'conversation': [{'input': text, 'output': row[word('a')]}]}


short = lambda row: {'conversation': [{'input': row['question'], 'output': SEPARATOR}]}
train_dataloader = dict(dataset=dict(dataset_map_fn=to_turns, other=short, third=no_one_asks))
'''


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(CONFIG.replace("open('sprung', 'w')", ""), "utf-8")
    return file


def test_functions_are_names_while_a_config_is_read(config: Path) -> None:
    values = read_config(Path("mine.py")).values
    dataset = values["train_dataloader"]["dataset"]
    assert dataset["dataset_map_fn"] == Ref(f"{config}:to_turns")
    assert dataset["other"] == Ref(f"{config}:short")
    assert "to_turns" not in values
    assert f"dataset_map_fn='{config}:to_turns'" in dump_python(values)


def test_a_function_is_loaded_with_what_it_needs_alone(config: Path) -> None:
    config.write_text(CONFIG, "utf-8")
    before = set(sys.modules)
    function = Ref(f"{config}:to_turns").resolve()
    assert function({"question": "six", "answer": "6"}) == {"conversation": [{"input": "siy?|6", "output": "6"}]}
    assert function.__code__.co_firstlineno == CONFIG.splitlines().index("def to_turns(row):") + 1
    assert Ref(f"{config}:short").resolve()({"question": "q"}) == {"conversation": [{"input": "q", "output": "|"}]}
    assert not (config.parent / "sprung").exists()
    assert not {name for name in set(sys.modules) - before if name.startswith(("mine", "no_such"))}


def test_constants_that_are_filled_later_are_whole(config: Path) -> None:
    config.write_text(
        "WORDS = {}\nWORDS['a'] = {}\nWORDS['a']['b'] = 'c'\nKEYS = []\nKEYS.append('a')\nSIGN = '\u2028'\n"
        "\n\ndef f(row):\n    return [WORDS[key]['b'] for key in KEYS]\n\n\ntrain_dataloader = dict(f=f)\n",
        "utf-8",
    )
    assert Ref(f"{config}:f").resolve()({}) == ["c"]


def test_settings_called_as_a_local_name_are_not_loaded(config: Path) -> None:
    config.write_text(
        "from no_such_library import Model\nmodel = dict(type=Model)\n\n\nclass Own:\n    @staticmethod\n"
        "    def f(row, model=3):\n        return model\n\n\ntrain_dataloader = dict(f=Own.f)\n",
        "utf-8",
    )
    assert Ref(f"{config}:Own.f").resolve()({}) == 3


def test_a_config_with_a_base_is_a_config(config: Path) -> None:
    config.write_text(
        "from mmengine.config import read_base\nwith read_base():\n    from .base import *\n\n\ndef f(row):\n"
        "    return 4\n\n\ntrain_dataset['f'] = f\n",
        "utf-8",
    )
    assert Ref(f"{config}:f").resolve()({}) == 4


def test_what_a_function_needs_and_is_not_there_is_one_sentence(config: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.py fails when it is imported \(ModuleNotFoundError.*no_such_library"):
        Ref(f"{config}:Trainer").resolve()
    with pytest.raises(UserError, match="there is no nothing in mine"):
        Ref(f"{config}:nothing").resolve()


def test_a_file_of_functions_is_loaded_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "functions.py"
    file.write_text("CALLS = []\nCALLS.append(1)\n\n\ndef f(row):\n    return CALLS\n", "utf-8")
    assert Ref(f"{file}:f").resolve()({}) == [1]


def test_names_of_a_base_come_with_it(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("from datasets import load_dataset\nimport torch\nname = 'e'\n", "utf-8")
    head = "from mmengine.config import read_base\nwith read_base():\n    from .base import *\n"
    (tmp_path / "c.py").write_text(f"{head}a = dict(type=load_dataset, path=f'{{name}}.json', d=torch.float16)\n")
    values = read_config(tmp_path / "c.py").values
    assert values["a"] == {"type": Ref("datasets.load_dataset"), "path": "e.json", "d": Ref("torch.float16")}
    assert set(values) == {"a", "name"}


def test_folders_of_sys_path_are_looked_into(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "maps.py").write_text("LENGTH = 7\n\n\ndef f(row):\n    return row\n", "utf-8")
    head = "import os, sys\nsys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), 'lib'))\n"
    (tmp_path / "c.py").write_text(f"{head}from maps import LENGTH, f\na = dict(f=f, n=LENGTH)\n", "utf-8")
    values = read_config(tmp_path / "c.py").values
    assert values["a"] == {"f": Ref(f"{tmp_path / 'lib' / 'maps.py'}:f"), "n": 7}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("from mmengine.config import ConfigDict\na = ConfigDict(x=dict(y=3)).x.y\n", 3),
        ("from mmengine import ConfigDict\nb = ConfigDict(a='A', **{'c': 'C'})\na = b.a + b['c']\n", "AC"),
        ("import collections\na = list(collections.OrderedDict([('z', 1), ('y', 2)]))\n", ["z", "y"]),
        ("import os.path as osp\na = osp.normpath('x/../y//z')\n", "y/z"),
        ("import math\na = round(math.pi, 2)\n", 3.14),
        ("import warnings, logging\nwarnings.filterwarnings('ignore')\nlogging.basicConfig(level=10)\na = 1\n", 1),
        ("logger = dict(a=1)\nlogger.update(a=2)\na = logger['a']\nprint(a)\n", 2),
        ("printed = []\nprinted.append(3)\na = printed\n", [3]),
        ("a = 1\nif a > 3:\n    raise ValueError('no')\n", 1),
        ("def f():\n    pass\na = 1\ndel f\n", 1),
        ("a = 'Calculate $\\\\int_0^1$'\n".replace("\\\\", "\\"), "Calculate $\\int_0^1$"),
    ],
)
def test_more_of_what_people_write(tmp_path: Path, text: str, value: object, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "c.py").write_text(text, "utf-8")
    assert read_config(tmp_path / "c.py").values["a"] == value
    assert not recwarn.list
