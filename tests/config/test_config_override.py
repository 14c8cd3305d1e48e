"""What `key=value` words of `--cfg-options` mean: as mmengine's DictAction (0.10) has it, but blanks stay."""

from typing import Any

import pytest

from xtuner.config.override import parse_override
from xtuner.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1e-4", 1e-4),
        ("0.5", 0.5),
        (".5", 0.5),
        ("True", True),
        ("false", False),
        ("None", None),
        ("abc", "abc"),
        ("", ""),
        ("1.2.3", "1.2.3"),
        ("nan", "nan"),
        ("a,b", ["a", "b"]),
        ("1,2.5,x", [1, 2.5, "x"]),
        ("[1,2]", [1, 2]),
        ("(1,2)", (1, 2)),
        ("[]", []),
        ("()", ()),
        ("[(a,b),[c,d]]", [("a", "b"), ["c", "d"]]),
        ("[你好, 你是谁]", ["你好", "你是谁"]),
        ("['a, b', \"c\"]", ["a, b", "c"]),
        ("'1'", "1"),
        ('"a,b"', "a,b"),
        ("Hello, world", "Hello, world"),
        ("/root/a=b", "/root/a=b"),
        ("it's", "it's"),
    ],
)
def test_values(text: str, value: Any) -> None:
    key, parsed = parse_override(f"a.b={text}")
    assert key == "a.b"
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("word", ["a", "=1", "a=[1", "a=[(1]", "a=['x]"])
def test_what_cannot_be_understood(word: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_override(word)
    assert caught.value.exit_code == 2
