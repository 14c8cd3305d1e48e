"""Rows out of files of every kind, and what bad files get."""

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xtuner.config.spec import SourceSpec
from xtuner.dataset.reader import BLOCK
from xtuner.dataset.source import open_source
from xtuner.errors import UserError

ROWS = [{"q": "one\n", "a": "1"}, {"q": "二", "a": '2, "two"'}, {"q": "", "a": "3"}]


def rows_of(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    return list(open_source(SourceSpec(path=str(path), **options)).rows())


def write_csv(file: Path, separator: str = ",") -> None:
    quoted = [[row["q"], row["a"]] for row in ROWS]
    lines = [separator.join('"' + cell.replace('"', '""') + '"' for cell in cells) for cells in quoted]
    file.write_text(f"q{separator}a\n" + "\n".join(lines) + "\n", encoding="utf-8")


def write_xlsx(file: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["q", "a", None])
    for row in ROWS:
        book.active.append([row["q"], row["a"], "a cell without a column name"])
    book.active.append([None, None])
    book.create_sheet("more").append(["x"])
    book.save(file)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "list.json": lambda file: file.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), encoding="utf-8"),
    "list.jsonl": lambda file: file.write_text(json.dumps(ROWS)),  # a list under the name of lines: seen in a course
    "lines.jsonl": lambda file: file.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n"),
    "lines.json": lambda file: file.write_text("\n".join(json.dumps(row) for row in ROWS)),
    "objects.json": lambda file: file.write_text("\n".join(json.dumps(row, indent=1) for row in ROWS)),
    "bom.json": lambda file: file.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS, ensure_ascii=False).encode()),
    "table.csv": write_csv,
    "semicolon.csv": lambda file: write_csv(file, ";"),
    "table.tsv": lambda file: write_csv(file, "\t"),
    "table.xlsx": write_xlsx,
    "table.parquet": lambda file: pq.write_table(pa.Table.from_pylist(ROWS), file),
}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    expected = [{k: v or None for k, v in row.items()} for row in ROWS] if name.endswith("xlsx") else ROWS
    source = open_source(SourceSpec(path=str(tmp_path / name)))
    assert list(source.rows()) == expected
    assert source.progress.share == pytest.approx(1.0, abs=0.3)
    assert list(source.rows()) == expected  # a second time


def test_only_the_first_sheet_and_says_so(tmp_path: Path) -> None:
    write_xlsx(tmp_path / "t.xlsx")
    source = open_source(SourceSpec(path=str(tmp_path / "t.xlsx")))
    list(source.rows())
    assert "of 2 sheets only Sheet was read" in source.progress.notes[0]


def test_text_files_give_a_row_per_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\n 二 \n", encoding="utf-8")
    assert rows_of(tmp_path / "t.txt") == [{"text": "one"}, {"text": " 二 "}]


def test_long_json_is_read_block_by_block(tmp_path: Path) -> None:
    rows = [{"n": number, "text": 'é\n\\"' * (number % 50)} for number in range(30_000)]
    rows.insert(7, {"n": -1, "text": "x" * (2 * BLOCK)})  # longer than a block
    for indent in (None, 1):
        (tmp_path / "long.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert rows_of(tmp_path / "long.json") == rows


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    row = json.dumps({"text": "word " * 50})
    (tmp_path / "big.jsonl").write_text((row + "\n") * 100_000)  # 27 MB
    tracemalloc.start()
    count = sum(1 for _ in open_source(SourceSpec(path=str(tmp_path / "big.jsonl"))).rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_000
    assert peak < 12 * BLOCK


def test_loader_names_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("datas").mkdir()
    for part in ("1", "2"):
        Path(f"datas/a{part}.json").write_text(json.dumps([{"text": part}]))
    one, two = [{"text": "1"}], [{"text": "2"}]
    assert rows_of("json", files={"train": "datas/a1.json"}) == one
    assert rows_of("json", files=["datas/a1.json", "datas/a2.json"]) == one + two
    assert rows_of("json", files={"train": ["datas/a1.json"], "test": "datas/a2.json"}, split="test") == two
    assert rows_of("json", files={"train": ["datas/a1.json"], "test": "datas/a2.json"}, split=None) == one + two
    assert rows_of("json", files="datas/*.json") == one + two
    assert rows_of("datas", files="a2.json") == two
    Path("odd.data").write_text('{"text": "x"}')
    assert rows_of("jsonl", files="odd.data") == [{"text": "x"}]
    assert open_source(SourceSpec(path="json", files="datas/*.json")).label == "datas/a1.json and 1 more"
    with pytest.raises(UserError, match=r"no files for the split validation"):
        rows_of("json", files={"train": "datas/a1.json"}, split="validation")
    with pytest.raises(UserError, match="No file fits"):
        rows_of("json", files="datas/*.csv")
    with pytest.raises(UserError, match="list of data files is empty"):
        rows_of("json", files=[])


def test_folders_choose_files_by_split(tmp_path: Path) -> None:
    # openassistant-guanaco of the first course: *_train.jsonl and *_eval.jsonl
    for name in ("guanaco_train", "guanaco_eval", "guanaco_dev"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    (tmp_path / "README.md").write_text("not data")
    assert rows_of(tmp_path) == [{"text": "guanaco_train"}]
    assert rows_of(tmp_path, split="test") == [{"text": "guanaco_eval"}]
    assert rows_of(tmp_path, split="validation") == [{"text": "guanaco_dev"}]
    assert len(rows_of(tmp_path, split=None)) == 3
    (tmp_path / "guanaco_dev.jsonl").unlink()
    with pytest.raises(UserError, match="no files of the split validation"):
        rows_of(tmp_path, split="validation")


def test_folders_without_split_names_are_all_for_training(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "sub" / "b.csv").write_text("text\ntwo\n")
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / ".hidden" / "c.txt").write_text("three\n")
    assert rows_of(tmp_path) == [{"text": "one"}, {"text": "two"}]


def test_saved_data_sets(tmp_path: Path) -> None:
    train = datasets.Dataset.from_list([{"text": str(number)} for number in range(2500)])
    train.save_to_disk(tmp_path / "one")
    assert rows_of(tmp_path / "one") == train.to_list()
    other = datasets.Dataset.from_list([{"text": "other"}])
    datasets.DatasetDict(train=train, test=other).save_to_disk(tmp_path / "two")
    assert rows_of(tmp_path / "two", split="test") == [{"text": "other"}]
    assert len(rows_of(tmp_path / "two", split=None)) == 2501
    with pytest.raises(UserError, match="no split dev"):
        rows_of(tmp_path / "two", split="dev")
    prints = {open_source(SourceSpec(path=str(tmp_path / "two"), split=s)).fingerprint() for s in ("train", "test")}
    assert len(prints) == 2


def test_a_hub_id_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        rows_of("nobody/no-such-data")
    assert "nobody/no-such-data is no file or folder here, and could not be loaded from the hub" in caught.value.what
    assert "\n" not in caught.value.what


def test_without_a_network_nobody_waits(tmp_path: Path) -> None:
    program = (
        "from xtuner.config.spec import SourceSpec\nfrom xtuner.dataset.source import open_source\n"
        "from xtuner.errors import UserError\n"
        "try:\n    open_source(SourceSpec(path='nobody/no-such-data'))\nexcept UserError as error:\n    print(error)\n"
    )
    proxies = {"http_proxy", "https_proxy", "all_proxy", "hf_hub_offline", "hf_datasets_offline"}
    env = {key: value for key, value in os.environ.items() if key.lower() not in proxies}
    env |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=100)
    assert done.stdout.startswith("nobody/no-such-data is no file or folder here")
    assert "Retrying" not in done.stderr


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('[{"text": "a"}]')
    before = open_source(SourceSpec(path=str(file))).fingerprint()
    file.rename(tmp_path / "b.json")
    assert open_source(SourceSpec(path=str(tmp_path / "b.json"))).fingerprint() == before
    (tmp_path / "b.json").write_text('[{"text": "b"}]')
    assert open_source(SourceSpec(path=str(tmp_path / "b.json"))).fingerprint() != before


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("a.json", b"", "is empty"),
    ("a.json", b'[{"a": 1},\n {"a": 2,}\n]', r"line 2, column 9"),
    ("a.jsonl", b'{"a": 1}\n\n{"a": "open\n{"a": 3}\n', r"a.jsonl is not valid JSON: line 3"),
    ("a.json", b'[{"a": 1},\n {"a": 2}', "ends before the list does"),
    ("a.json", b'[{"a": 1}\n {"a": 2}]', "line 2, column 2: a comma or the closing"),
    ("a.json", b'[{"a": 1},\n]', "a comma stands before the closing"),
    ("a.json", b'[{"a": 1}]\n[2]', "line 2, column 1: there is more text after the end"),
    ("a.json", b'[{"a": 1}, [2]]', "this is a list"),
    ("a.json", b'"text"', "this is a text"),
    ("a.json", b"{'a': 1}", "line 1, column 2"),
    ("a.json", b'{"a": "b', r"column 7: unterminated string\.$|unterminated string\. "),
    ("a.json", b'{"a": ' + b"[" * 100_000, "nested too deeply|valid JSON"),
    ("a.json", b'[{"a": 1},\n {"a": "' + "你好".encode("gb18030") + b'"}]', r"not written in UTF-8 \(around line 2\)"),
    ("a.json", '[{"a": "b"}]'.encode("utf-16"), "UTF-16"),
    ("a.csv", "q,a\n一,二\n三,四\n".encode("gb18030"), "GB18030"),
    ("a.csv", b"q,a\n1,2,3\n", "line 2: 3 fields, but the header names 2"),
    ("a.csv", b'q,a\n"1,2\n', "line 2 is not valid CSV|unexpected end"),
    ("a.csv", b"q,q\n1,2\n", "two columns of the same name"),
    ("a.txt", b"\xff\xfe\xff", "not written in UTF-8"),
    ("a.xlsx", b"not a zip", "is not an Excel file"),
    ("a.parquet", b"PAR1 nonsense", "is not a Parquet file"),
    ("a.docx", b"words", "of a kind that is not read"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_files_are_named_with_their_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        rows_of(tmp_path / name)
    assert name in str(caught.value)
    assert caught.value.fix


def test_an_error_far_inside_a_long_file_has_the_right_line(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "word " * 40}) for _ in range(20_000)]
    lines[17_654] = '{"text": wrong}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 17655, column 10"):
        rows_of(tmp_path / "a.jsonl")


def test_missing_files_get_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "assistant.json").write_text("[]")
    with pytest.raises(UserError, match=r"There is no data file .*Did you mean assistant.json"):
        rows_of(tmp_path / "asistant.json")
    with pytest.raises(UserError, match="There is no data file"):
        rows_of("datas/nowhere.json")
    with pytest.raises(UserError, match="There is no data file"):
        rows_of("json", files="nowhere.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data files"):
        rows_of(tmp_path / "empty")
