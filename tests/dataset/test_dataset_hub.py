"""Data sets of ModelScope (by its library, or a folder as it lays them out), folders inside data sets, repeats."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from xtuner.config.spec import DataSpec, SourceSpec
from xtuner.dataset.pipeline import build_dataset
from xtuner.dataset.source import open_source
from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer

TOKENIZER = Path(__file__).parents[1] / "golden" / "internlm2"
LIBRARY = """
import datasets

class MsDataset:
    def __init__(self, rows):
        self.rows = rows

    @staticmethod
    def load(path, split=None, subset_name=None, **options):
        if path == "team/gone":
            raise ValueError("There is no such data set.\\nAnd more.")
        rows = {name: [{"text": f"{path} {subset_name} {name} {options}"}] for name in ("train", "test")}
        return MsDataset(rows[split]) if split else {name: MsDataset(part) for name, part in rows.items()}

    def to_hf_dataset(self):
        return datasets.Dataset.from_list(self.rows)
"""


def texts(**spec: Any) -> list[str]:
    return [row["text"] for row in open_source(SourceSpec(**spec)).rows()]


def write(file: Path, *words: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": word}) + "\n" for word in words))


def test_without_the_library_one_sentence_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UserError, match="team/data is a data set of ModelScope") as caught:
        texts(path="team/data", hub="modelscope")
    assert "pip install modelscope" in caught.value.fix


def test_the_library_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "modelscope"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "msdatasets.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("modelscope", "modelscope.msdatasets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = {"path": "team/data", "hub": "modelscope"}
    assert texts(**spec) == ["team/data None train {}"]
    assert texts(**spec, name="small", data_dir="part") == ["team/data small train {'data_dir': 'part'}"]
    assert texts(**{**spec, "split": None}) == ["team/data None train {}", "team/data None test {}"]
    prints = [open_source(SourceSpec(**spec, name=name)).fingerprint() for name in (None, "small")]
    assert prints[0] != prints[1]
    with pytest.raises(UserError, match=r"could not be loaded from ModelScope: There is no such data set\. ") as caught:
        texts(path="team/gone", hub="modelscope")
    assert "more" not in caught.value.what
    for name in ("modelscope", "modelscope.msdatasets"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_folder_of_modelscope_needs_no_library(tmp_path: Path) -> None:
    folder = tmp_path / "MyData"
    write(folder / "first.jsonl", "one")
    write(folder / "second.jsonl", "two")
    about = {"default": {"train": {"meta": "first.jsonl", "file": ""}, "test": {"meta": "second.jsonl"}}}
    (folder / "MyData.json").write_text(json.dumps(about))
    spec = {"path": str(folder), "hub": "modelscope"}
    assert texts(**spec) == ["one"]
    assert texts(**spec | {"split": "test"}) == ["two"]
    assert texts(**spec | {"split": None}) == ["one", "two"]
    with pytest.raises(UserError, match="has no split dev") as caught:
        texts(**spec | {"split": "dev"})
    assert "train, test" in caught.value.fix
    with pytest.raises(UserError, match="has no subset big"):
        texts(**spec | {"name": "big"})


def test_a_json_file_with_the_name_of_its_folder_is_data(tmp_path: Path) -> None:
    write(tmp_path / "talk" / "talk.json", "one", "two")
    assert texts(path=str(tmp_path / "talk")) == ["one", "two"]


def test_a_folder_inside(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.jsonl", "outer")
    write(tmp_path / "data" / "part" / "b.jsonl", "inner")
    assert texts(path=str(tmp_path / "data"), data_dir="part") == ["inner"]
    assert texts(path="json", data_dir=str(tmp_path / "data" / "part")) == ["inner"]
    assert texts(path="json", data_dir=str(tmp_path / "data"), files="part/b.jsonl") == ["inner"]
    with pytest.raises(UserError, match=r"There is no folder .*gone"):
        texts(path=str(tmp_path / "data"), data_dir="gone")
    with pytest.raises(UserError, match=r"holds no data files"):
        texts(path="csv", data_dir=str(tmp_path / "data"))


def test_rows_are_repeated(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(TOKENIZER))
    write(tmp_path / "a.jsonl", *(f"first {number}" for number in range(40)))
    write(tmp_path / "b.jsonl", *(f"second {number}" for number in range(40)))

    def counts(first: float, second: float, seed: int = 0, **options: Any) -> list[int]:
        sources = [SourceSpec(path=str(tmp_path / "a.jsonl"), repeat=first)]
        sources.append(SourceSpec(path=str(tmp_path / "b.jsonl"), repeat=second))
        spec = DataSpec(train=sources, max_length=64, cache=str(tmp_path / "cache"), **options)
        data = build_dataset(spec, tokenizer, seed=seed)
        assert data.report.samples == len(data.train.packs.members)
        return [int((data.train.packs.members == number).sum()) for number in range(80)]

    assert counts(1, 1) == [1] * 80
    assert counts(2, 1) == [2] * 40 + [1] * 40
    half = counts(0.5, 1)
    assert (sum(half[:40]), half[40:]) == (20, [1] * 40)
    assert counts(0.5, 1) == half
    assert counts(0.5, 1, seed=1) != half
    more = counts(1, 2.25, pack=False)
    assert (sorted(more[40:]), more[:40]) == ([2] * 30 + [3] * 10, [1] * 40)
    twice = SourceSpec(path=str(tmp_path / "b.jsonl"), repeat=2)
    spec = DataSpec(train=[twice], validation=[twice], pack=False, cache=str(tmp_path / "cache"))
    held = build_dataset(spec, tokenizer, seed=0).validation
    assert held is not None
    assert len(held) == 80
    with pytest.raises(UserError, match="leaves no rows"):
        counts(0.001, 0.001)


def test_a_function_in_a_file_runs_in_worker_processes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\n\ndef read(row):\n    return {'conversation': [{'input': row['q'], 'output': str(os.getpid())}]}\n"
    )
    rows = [json.dumps({"q": "word " * 400}) + "\n" for _ in range(5000)]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    assert (tmp_path / "a.jsonl").stat().st_size > 8 << 20, "enough for processes"
    source = SourceSpec(path=str(tmp_path / "a.jsonl"), format=f"{tmp_path / 'mine.py'}:read")
    spec = DataSpec(train=[source], max_length=3000, pack=False, cache=str(tmp_path / "cache"), template="plain")
    tokenizer = load_tokenizer(str(TOKENIZER))
    data = build_dataset(spec, tokenizer, seed=0)
    answers = {tokenizer.decode(data.train[index].input_ids[-12:]).split("word ")[-1] for index in range(0, 5000, 500)}
    assert answers
    assert not any(str(os.getpid()) in answer for answer in answers)
