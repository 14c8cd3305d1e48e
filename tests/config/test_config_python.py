"""The language of Python configs: read, never run."""

import copy
from pathlib import Path

import pytest

from xtuner.config.dump import dump_python
from xtuner.config.reader import Config, read_config, read_text
from xtuner.config.ref import Ref
from xtuner.config.table import Table
from xtuner.errors import UserError

EVERYTHING = '''
"""A docstring."""
import torch
import os.path as osp
from mmengine.hooks import CheckpointHook as Hook
from xtuner.utils import PROMPT_TEMPLATE

size: int = 2
max_length = int(2048 - (336 / 14) ** 2)
template = PROMPT_TEMPLATE['internlm2_chat']
half = torch.float16
base = dict(type=Hook, keep=-1)
first, *rest = 1, 2
numbers = [n * size for n in range(4) if n % 2]
by_name = {f'layer_{n:02d}': n for n in range(2)}
merged = {**base, 'keep': 3}
again = dict(base, keep=4)
sampler = Hook if size > 2 else torch.nn.Linear
chain = 0 < size <= 2 and not None
path = osp.join('data', 'a.json')
text = 'a-b'.replace('-', '_').upper() + '{}'.format(size) + '%d' % size
hooks = []
hooks += [base]
size *= 4
if size == 8:
    flag = 'yes'
elif size:
    flag = 'no'
base['extra'] = (1,)
base.update(more=2)
hooks.append(dict(type=Hook))
for n in range(3):
    hooks.append(n)
picked = hooks[-1] + len(hooks)
part = 'abcdef'[1:3]
del flag
'''.replace("first, *rest = 1, 2\n", "first, second = 1, 2\n")


def read(text: str, **overrides: object) -> Config:
    return read_text(text, Path("my.py"), "python", overrides)


def test_everything_the_language_has() -> None:
    values = read(EVERYTHING).values
    assert values["max_length"] == 1472
    assert values["template"] == Ref("xtuner.utils.PROMPT_TEMPLATE.internlm2_chat")
    assert values["half"] == Ref("torch.float16")
    assert values["numbers"] == [2, 6]
    assert values["by_name"] == {"layer_00": 0, "layer_01": 1}
    assert values["merged"] == {"type": Ref("mmengine.hooks.CheckpointHook"), "keep": 3}
    assert values["again"]["keep"] == 4
    assert values["sampler"] == Ref("torch.nn.Linear")
    assert values["chain"] is True
    assert values["path"] == "data/a.json"
    assert values["text"] == "A_B22"
    assert values["size"] == 8
    assert values["base"]["extra"] == (1,)
    assert values["base"]["more"] == 2
    assert values["hooks"][0] is values["base"]
    assert values["picked"] == 2 + 5
    assert values["part"] == "bc"
    assert (values["first"], values["second"]) == (1, 2)
    assert "flag" not in values
    assert "torch" not in values, "imports are not settings"


def test_keys_remember_their_lines() -> None:
    values = read("a = 1\nmodel = dict(\n    type='x',\n    llm=dict(\n        path='p'))\n").values
    assert values.where("model") == "my.py:2"
    assert values["model"].where("type") == "my.py:3"
    assert values["model"]["llm"].where("path") == "my.py:5"
    assert copy.deepcopy(values)["model"]["llm"].where("path") == "my.py:5"
    assert values["model"].copy().where("llm") == "my.py:4"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a = 1\nb = 1 +\n", 2, "not Python"),
        ("a = 1\nb = undefind\n", 2, "undefind has no value"),
        ("max_length = 2\nb = max_lenght\n", 2, "Did you mean max_length?"),
        ("a = open('/etc/passwd').read()\n", 1, "cannot be called"),
        ("import os\na = os.system('true')\n", 2, "dict(type=os.system, ...)"),
        ("a = __import__('os')\n", 1, "cannot be called"),
        ("a = [].__class__\n", 1, "not part of the config language"),
        ("a = '{0.__class__}'.format(1)\n", 1, "not a plain name"),
        ("a = eval('1')\n", 1, "cannot be called"),
        ("a = 1\n\nf = [lambda row: row]\n", 3, "lambda"),
        ("def f(row):\n    return row\na = f(1)\n", 3, "Functions of a config are not run while it is read"),
        ("while True:\n    pass\n", 1, "while"),
        ("from os import *\n", 1, "does not say which names"),
        ("import torch\na = torch.float16 + 1\n", 2, "imported name"),
        ("a = 1 / 0\n", 1, "division by zero"),
        ("a = '3'\nb = 0.5 * a\n", 2, "Here a is '3'."),
        ("a = dict(x=1)\nb = a['y']\n", 2, "'y' is missing"),
        ("a = 9 ** 9 ** 9\n", 1, "too large"),
        ("a = 'x' * 10 ** 12\n", 1, "too large"),
        ("a = 'x' * 10**7\nb = a.replace('x', a)\n", 2, "too large"),
        ("a = 'x' * 10**7\nb = a.replace('', 'yy', -1)\n", 2, "too large"),
        ("a = 'x' * 10**7\nb = '{0}{0}'.format(a)\n", 2, "too large"),
        ("a = 'x' * 10**7\nb = '{x}{x}'.format(x=a)\n", 2, "too large"),
        ("a = 'x' * 10**7\nb = a.join(['', '', ''])\n", 2, "too large"),
        ("a = 'x' * 10**7\nb = f'{a}{a}'\n", 2, "too large"),
        ("a = 'x' * 10**7\nb = a + a\n", 2, "too large"),
        ("a = 'x' * 10**7\nb = '%s%s' % (a, a)\n", 2, "too large"),
        ("a = [0] * 10**7\na.extend(a)\n", 2, "too large"),
        ("a = list(range(10 ** 12))\n", 1, "too long"),
        ("a = f'{1:99999999}'\n", 1, "too wide"),
        ("a = [1 for x in range(10 ** 6) for y in range(10 ** 6)]\n", 1, "does not come to an end"),
        ("with open('x') as f:\n    pass\n", 1, "not part of the config language"),
        ("a, b = 1, 2, 3\n", 1, "2 names for 3 values"),
    ],
)
def test_mistakes_say_file_and_line(text: str, line: int, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(text)
    assert f"my.py:{line}:" in str(caught.value)
    assert said in str(caught.value)


def test_no_file_is_executed(tmp_path: Path) -> None:
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\ndef f(row):\n    return row\n")
    config = tmp_path / "c.py"
    config.write_text(
        "import trap\nfrom mmengine.config import read_base\nwith read_base():\n    from .trap import f\nfn = f\n"
    )
    assert read_config(config).values["fn"] == Ref(f"{trap}:f")
    assert not (tmp_path / "sprung").exists()


def test_read_base_takes_variables_and_functions_of_the_file_beside(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("lr = 1e-4\noptimizer = dict(lr=lr)\n")
    (tmp_path / "map_fn.py").write_text("import something_missing\n\ndef mine(row):\n    return row\n")
    config = tmp_path / "c.py"
    config.write_text(
        "from mmengine.config import read_base\n"
        "with read_base():\n    from .base import *\n    from .map_fn import mine as fn\n"
        "optimizer.update(eps=1)\ndataset_map_fn = fn\n"
    )
    values = read_config(config, {"lr": 0.5}).values
    assert values["optimizer"] == {"lr": 0.5, "eps": 1}, "an override reaches into the base"
    assert values["dataset_map_fn"] == Ref(f"{tmp_path / 'map_fn.py'}:mine")
    config.write_text("with read_base():\n    from .base import nothing\n")
    with pytest.raises(UserError, match=r"c\.py:2: .*base\.py has no nothing"):
        read_config(config)


def test_an_override_reaches_nested_uses() -> None:
    text = "max_length = 2048\nmax_length *= 2\ndata = dict(max_length=max_length, rows=[1, dict(a=1)])\n"
    config = read(text, max_length=512)
    assert config.values["data"]["max_length"] == 512
    assert config.values.where("max_length") == "the command line"
    dotted = read(text, **{"data.rows.1.a": 7, "data.new.deep": 1})
    assert dotted.values["data"]["rows"] == [1, {"a": 7}]
    assert dotted.values["data"]["new"] == {"deep": 1}
    assert dotted.values["data"]["max_length"] == 4096
    assert read(text, other=1).added == ("other",)
    with pytest.raises(UserError, match="no place 5"):
        read(text, **{"data.rows.5": 7})
    with pytest.raises(UserError, match="not a table"):
        read(text, **{"max_length.deep": 7})


def test_a_dump_reads_back_the_same() -> None:
    values = read(EVERYTHING).values
    text = dump_python(values)
    names = [line.split(" = ")[0] for line in text.splitlines() if " = " in line and not line.startswith(" ")]
    assert names == sorted(values)
    assert "type='mmengine.hooks.CheckpointHook'" in text
    assert max(map(len, text.splitlines())) <= 79
    again = read(text).values
    assert dump_python(again) == text
    assert again["by_name"] == values["by_name"]
    assert again["base"]["extra"] == (1,)


def test_odd_values_survive_a_dump() -> None:
    values = Table({"a": float("inf"), "b": {"not a name": [()], 3: ""}, "c": "'\n\"", "d": (), "e": -1e-5})
    again = read(dump_python(values)).values
    assert dict(again) == dict(values)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.py", None, "There is no file"),
        ("empty.py", "", "is empty"),
        ("blank.yaml", " \n", "is empty"),
        ("latin.py", b"a = '\xe4'", "not a text in UTF-8"),
        ("config.txt", "a = 1", "is not a config"),
        ("run.json", "{", "run.json:1: this is not JSON"),
        ("run.json", "[]", "not the record of a run"),
    ],
)
def test_files_that_are_no_configs(tmp_path: Path, name: str, content: str | bytes | None, said: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        read_config(path)


def test_a_file_that_fails_when_it_is_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise FileExistsError('there already')\n")
    with pytest.raises(UserError, match=r"mine\.py fails when it is imported \(FileExistsError: there already\)"):
        Ref(f"{tmp_path / 'mine.py'}:f").resolve()
