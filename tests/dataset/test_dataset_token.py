"""Rows that are tokens already, and the folders they come in."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from xtuner.config.spec import DataSpec, SourceSpec
from xtuner.dataset.formats.token import internevo, tokens
from xtuner.dataset.pipeline import Prepared, build_dataset
from xtuner.dataset.row import BadRow, Tokens
from xtuner.dataset.source import open_source
from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer

TOKENIZER = Path(__file__).parents[1] / "golden" / "internlm2"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(TOKENIZER))


@pytest.fixture
def build(tmp_path: Path, tokenizer: Any) -> Any:
    def build(source: Any, **options: Any) -> Prepared:
        values = {"max_length": 32, "pack": False, "cache": str(tmp_path / "cache"), **options}
        return build_dataset(DataSpec(train=[source], **values), tokenizer, seed=0)

    return build


def samples(data: Prepared) -> list[tuple[list[int], list[int]]]:
    packs = [data.train[index] for index in range(len(data.train))]
    return [(pack.input_ids.tolist(), pack.labels.tolist()) for pack in packs]


def test_columns_of_tokens() -> None:
    assert tokens({"input_ids": [1, 2, 3]}) == Tokens([([1, 2, 3], [True] * 3)])
    assert tokens({"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "length": 3}) == Tokens(
        [([1, 2, 3], [False, True, True])]
    )
    padded = {"input_ids": [0, 5, 6], "labels": [-100, -100, 6], "attention_mask": [0, 1, 1]}
    assert tokens(padded) == Tokens([([5, 6], [False, True])])
    packed = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, -100, 4, 5], "cumulative_len": [0, 2, 5]}
    assert tokens(packed) == Tokens([([1, 2], [False, True]), ([3, 4, 5], [False, True, True])])
    assert internevo({"tokens": [-5, 0, 7]}) == Tokens([([5, 0, 7], [False, False, True])])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input_ids": "1 2"}, "no list of tokens in input_ids"),
        ({"input_ids": [[1], [2]]}, "a list of lists in input_ids"),
        ({"input_ids": ["a"]}, "something other than numbers"),
        ({"input_ids": [1.5]}, "something other than whole numbers"),
        ({"input_ids": [-200, 1]}, "below zero"),
        ({"input_ids": []}, "no tokens"),
        ({"input_ids": [1, 2], "labels": [1]}, "different lengths"),
        ({"input_ids": [1, 2], "labels": [-100, 3]}, "neither its token nor -100"),
        ({"input_ids": [1, 2], "cumulative_len": [0, 1]}, "cumulative_len"),
    ],
)
def test_rows_that_are_no_tokens(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        tokens(row)


def test_a_saved_data_set_of_tokens(tmp_path: Path, build: Any) -> None:
    rows = {
        "input_ids": [[1, 11, 12, 2], [1, 13], list(range(100, 140))],
        "labels": [[-100, 11, 12, 2], [-100, -100], [-100] * 2 + list(range(102, 140))],
        "length": [4, 2, 40],
    }
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "saved")
    data = build(SourceSpec(path=str(tmp_path / "saved"), split=None, format="tokens"))
    assert samples(data) == [
        ([1, 11, 12, 2], [-100, 11, 12, 2]),
        (list(range(100, 132)), [-100] * 2 + list(range(102, 132))),
    ]
    report = data.report.sources[0]
    assert (report.dropped["nothing in it is learned"].first, report.truncated.first) == ([2], [3])
    assert samples(build(str(tmp_path / "saved"))) == samples(data), "recognised"
    longer = build(SourceSpec(path=str(tmp_path / "saved"), format="tokens", min_length=5))
    assert longer.train.origin(0).endswith("rows 3")
    assert longer.report.sources[0].dropped["fewer than 5 tokens"].first == [1, 2]


def test_saved_rows_that_are_not_tokens_yet(tmp_path: Path, build: Any) -> None:
    rows = [{"input": "a", "output": f"b{number}"} for number in range(3)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    data = build(SourceSpec(path=str(tmp_path), data_dir="saved", format="default"), template="internlm2_chat")
    assert data.report.samples == 3


def write_bin(folder: Path, name: str, rows: list[list[int]]) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"tokens": row}).encode() + b"\n" for row in rows]
    file.write_bytes(b"".join(lines))
    offsets = np.cumsum([0, *map(len, lines)])[:-1]
    with Path(f"{file}.meta").open("wb") as meta:
        np.save(meta, np.array([(offset, len(row)) for offset, row in zip(offsets, rows, strict=True)]))
    return file


def test_an_internevo_folder(tmp_path: Path, build: Any) -> None:
    folder = tmp_path / "tokens"
    write_bin(folder, "cn/b.bin", [[-1, 5, 6]])
    first = write_bin(folder, "a.bin", [[-1, -2, 3, 4], [7, 8]])
    source = {"path": str(folder), "format": "internevo"}
    assert samples(build(SourceSpec(**source))) == [
        ([1, 2, 3, 4], [-100, -100, 3, 4]),
        ([7, 8], [7, 8]),
        ([1, 5, 6], [-100, 5, 6]),
    ]
    (tmp_path / "order.txt").write_text("cn/b.bin\na.bin\n")
    ordered = build(SourceSpec(**source, order=str(tmp_path / "order.txt"), min_length=3))
    assert [ids for ids, _ in samples(ordered)] == [[1, 5, 6], [1, 2, 3, 4]]
    (tmp_path / "order.txt").write_text("cn/c.bin\n")
    with pytest.raises(UserError, match=r"no data file .*c\.bin"):
        build(SourceSpec(**source, order=str(tmp_path / "order.txt")))
    with pytest.raises(UserError, match=r"no file .*none\.txt that orders"):
        build(SourceSpec(**source, order=str(tmp_path / "none.txt")))
    first.write_bytes(first.read_bytes()[:10])
    with pytest.raises(UserError, match=r"a\.bin is cut short"):
        build(SourceSpec(**source))
    with pytest.raises(UserError, match=r"holds no \.json files"):
        open_source(SourceSpec(path=str(folder), format="internevo_messages"))


def test_an_internevo_folder_of_messages(tmp_path: Path, build: Any, tokenizer: Any) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (folder / "a.json").write_text(f"{json.dumps(talk)}\n\n{json.dumps(talk * 2)}\n")
    source = SourceSpec(path=str(folder), format="internevo_messages")
    texts = [tokenizer.decode(ids) for ids, _ in samples(build(source, template="internlm2_chat"))]
    assert [text.count("<|im_end|>") for text in texts] == [2, 4]
    (folder / "a.json").write_text(f"{json.dumps(talk)}\n3\n")
    with pytest.raises(UserError, match="row 2 is no list of messages"):
        build(source, template="internlm2_chat")
