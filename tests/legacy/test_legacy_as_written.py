"""Configs as people write them: arguments of the libraries that say the usual, and those that cannot be followed."""

from pathlib import Path

import pytest

from xtuner.catalog.render import render
from xtuner.config.dump import dump_python
from xtuner.config.reader import read_text
from xtuner.config.spec import RunSpec
from xtuner.errors import UserError
from xtuner.legacy.run import to_run_spec

COURSE = "internlm2_chat_1_8b_qlora_alpaca_e3"
ROWS = "path=alpaca_en_path"


def translate(text: str) -> RunSpec:
    return to_run_spec(read_text(text, Path("course.py"), "python"))


def edited(old: str, new: str) -> str:
    text = render(COURSE)
    assert text.count(old) >= 1, old
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (ROWS, f"{ROWS}, cache_dir='x', download_mode='reuse_cache_if_exists', num_proc=8, revision='main'"),
        (ROWS, f"{ROWS}, sep='\\t'"),
        (ROWS, f"{ROWS}, delimiter=','"),
        ("torch_dtype=torch.float16", "torch_dtype=torch.float16, cache_dir='x', local_files_only=True, revision=None"),
        ("lora_alpha=16", "lora_alpha=16, init_lora_weights=True, fan_in_fan_out=False, layers_to_transform=None"),
        ("train_cfg = dict(", "train_cfg = dict(dynamic_intervals=None, val_begin=1, "),
        ("lr = 2e-4", "lr = 2e-4\nprint('lr is', lr)"),
    ],
)
def test_what_says_the_usual_changes_nothing(old: str, new: str) -> None:
    assert translate(edited(old, new)) == translate(render(COURSE))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (ROWS, f"{ROWS}, delimiter='|'", "columns cannot be parted by '|'"),
        (ROWS, f"{ROWS}, revision='v2'", "revision='v2' cannot be followed"),
        ("torch_dtype=torch.float16", "torch_dtype=torch.float16, revision='v2'", "revision='v2' cannot be followed"),
        ("lora_alpha=16", "lora_alpha=16, init_lora_weights='pissa'", "init_lora_weights='pissa' cannot be followed"),
        ("lora_alpha=16", "lora_alpha=16, layers_to_transform=[1]", "layers_to_transform"),
    ],
)
def test_what_cannot_be_followed_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        translate(edited(old, new))
    assert said in caught.value.what
    assert caught.value.what.startswith("course.py:")


def test_generation_kwargs_have_the_last_word_about_the_length() -> None:
    text = edited("every_n_iters=", "max_new_tokens=50, generation_kwargs=dict(max_new_tokens=7), every_n_iters=")
    probe = translate(text).probe
    assert probe is not None
    assert probe.max_new_tokens == 7


def test_a_dump_keeps_the_order_of_data_sets_and_what_is_renamed() -> None:
    text = (
        render(COURSE)
        + """
from xtuner.dataset import ConcatDataset
first = dict(alpaca_en, rename_maps=[dict(old='q', new='input')])
train_dataloader['dataset'] = dict(type=ConcatDataset, datasets_cfg=dict(zebra=first, ape=alpaca_en))
"""
    )
    config = read_text(text, Path("course.py"), "python")
    spec = to_run_spec(config)
    assert spec.data.train[0].rename == {"q": "input"}
    assert translate(dump_python(config.values)) == spec
    assert spec.data.train[1].rename == {}
