"""Data files made of data files: converted, split, repeated, filtered; no row is lost and no kind of file changes."""

import csv
import datetime
import io
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xtuner.dataset.reader import READERS, Progress, read_cells
from xtuner.dataset.table.arxiv import choose_papers
from xtuner.dataset.table.convert import Converted, Reading, convert
from xtuner.dataset.table.layout import kind_of
from xtuner.dataset.table.refcoco import collect, to_corners
from xtuner.dataset.table.split import part_names, read_ratio, repeat, share_out, split
from xtuner.errors import UserError

HEAD = ["科室", "问题", "答案", "日期"]
ROWS: list[list[Any]] = [
    ["内科", "感冒了怎么办？", "多喝水，\n注意休息。", datetime.datetime(2020, 1, 2)],
    ["内科", None, "没有问题", 1],
    ["外科", "骨折后多久能走路？", 12, 3.5],
    ["外科", "没有答案", None, True],
    [None, None, None, None],
    ["儿科", "发烧, 怎么办;", '他说 "多喝水"', datetime.datetime(2020, 1, 2, 8, 30)],
]


def make_xlsx(file: Path) -> Path:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in [HEAD, *ROWS]:
        sheet.append(row)
    book.create_sheet("second")
    book.save(file)
    return file


def converted(source: Path, name: str = "out.jsonl", **reading: Any) -> tuple[Converted, str]:
    out = io.BytesIO()
    return convert(str(source), Path(name), out, Reading(**reading)), out.getvalue().decode()


def test_medqa_as_the_course_has_it(tmp_path: Path) -> None:
    done, text = converted(make_xlsx(tmp_path / "medqa.xlsx"), question="问题", answer="答案", system="你是一名医生。")
    turns = [json.loads(line)["conversation"] for line in text.splitlines()]
    assert turns == [
        [{"system": "你是一名医生。", "input": "感冒了怎么办？", "output": "多喝水，\n注意休息。"}],
        [{"system": "你是一名医生。", "input": "骨折后多久能走路？", "output": "12"}],
        [{"system": "你是一名医生。", "input": "发烧, 怎么办;", "output": '他说 "多喝水"'}],
    ]
    assert (done.rows, done.written) == (5, 3), "a row of empty cells is no row"
    assert {why: tally.first for why, tally in done.skipped.items()} == {
        "nothing in column 问题": [2],
        "nothing in column 答案": [4],
    }
    assert done.first == {"conversation": turns[0]}
    assert "of 2 sheets only" in done.notes[0]


def test_a_list_and_lines(tmp_path: Path) -> None:
    source = make_xlsx(tmp_path / "m.xlsx")
    as_list = json.loads(converted(source, "out.json", question="问题", answer="答案")[1])
    as_lines = [json.loads(line) for line in converted(source, question="问题", answer="答案")[1].splitlines()]
    assert as_list == as_lines
    with pytest.raises(UserError, match="written as JSON"):
        converted(source, "out.csv", question="问题", answer="答案")


def test_dates_and_numbers_are_written_as_a_person_would(tmp_path: Path) -> None:
    rows = list(READERS["xlsx"](make_xlsx(tmp_path / "m.xlsx"), Progress()))
    assert [row["日期"] for row in rows] == ["2020-01-02", "1", "3.5", "True", "2020-01-02 08:30:00"]


def test_columns_that_do_not_exist(tmp_path: Path) -> None:
    source = make_xlsx(tmp_path / "m.xlsx")
    with pytest.raises(UserError, match=r"has no column 提问\. It has: 科室, 问题, 答案, 日期"):
        converted(source, question="提问", answer="答案")
    (tmp_path / "odd.json").write_text('[{"x": 1}]', "utf-8")
    with pytest.raises(UserError, match="has the columns x, which is no layout"):
        converted(tmp_path / "odd.json")
    (tmp_path / "none.csv").write_text("q,a\n1,\n2,\n", "utf-8")
    with pytest.raises(UserError, match=r"None of the 2 rows .* nothing in column a: 2 \(rows 1, 2\)"):
        converted(tmp_path / "none.csv", question="q", answer="a")


def test_any_format_becomes_conversations(tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "loss": False},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    file.write_text(json.dumps({"messages": messages}), "utf-8")
    done, text = converted(file, system="unused: there is one")
    assert done.format == "openai"
    assert json.loads(text)["conversation"] == [
        {"system": "S", "input": "a", "output": "b", "output_with_loss": False},
        {"input": "c", "output": "d"},
    ]
    (tmp_path / "plain.txt").write_text("eins\nzwei\n", "utf-8")
    _, text = converted(tmp_path / "plain.txt", system="not for texts")
    assert json.loads(text.splitlines()[0]) == {
        "conversation": [{"input": "", "output": "eins", "need_eos_token": False}]
    }


def make(kind: str, folder: Path) -> Path:
    """Write 101 rows as a file of `kind`."""
    file = folder / f"rows{kind}"
    rows = [{"q": f"问题 {n}", "a": "一行\n两行" if n % 2 else f'x, "{n}"'} for n in range(101)]
    if kind == ".jsonl":
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    elif kind == ".json":
        file.write_text(json.dumps(rows, indent=4), "utf-8")
    elif kind in (".csv", ".tsv"):
        with file.open("w", encoding="utf-8-sig", newline="") as text:
            table = csv.DictWriter(text, ["q", "a"], delimiter="\t" if kind == ".tsv" else ";")
            table.writeheader()
            table.writerows(rows)
    elif kind == ".xlsx":
        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet()
        sheet.append(["q", "n", "d"])
        for n in range(101):
            sheet.append([f"问题 {n}", n, datetime.datetime(2020, 1, 1 + n % 20)])
        book.save(file)
    elif kind == ".parquet":
        schema = pa.schema([("q", pa.string()), ("n", pa.int8()), ("m", pa.list_(pa.struct([("r", pa.string())])))])
        values = [{"q": f"问题 {n}", "n": n, "m": [{"r": "u"}]} for n in range(101)]
        pq.write_table(pa.Table.from_pylist(values, schema), file)
    else:
        file.write_text("\n".join(f"第 {n} 行" for n in range(101)), "utf-8")
    return file


def load(file: Path) -> list[dict[str, Any]]:
    read = read_cells if file.suffix == ".xlsx" else READERS[kind_of(file)]
    return list(read(file, Progress()))


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".xlsx", ".parquet", ".txt"])
def test_splitting_keeps_kind_and_rows(kind: str, tmp_path: Path) -> None:
    file = make(kind, tmp_path)
    targets = part_names(file, 2)
    assert [target.name for target in targets] == [f"rows-train{kind}", f"rows-test{kind}"]
    for _ in range(2):
        with targets[0].open("wb") as train, targets[1].open("wb") as test:
            done = split(file, [7, 3], [train, test], seed=3)
    assert done.sizes == [71, 30]
    assert done.shared == 0
    whole, parts = load(file), [load(target) for target in targets]
    assert [len(part) for part in parts] == done.sizes
    place = {repr(row): number for number, row in enumerate(whole)}
    assert Counter(map(repr, parts[0] + parts[1])) == Counter(map(repr, whole)), "every row once, unchanged"
    for part in parts:
        places = [place[repr(row)] for row in part]
        assert places == sorted(places), "in the order of the file"
        assert places != list(range(places[0], places[0] + len(places))), "drawn, not cut"
    head = file.read_bytes()[:6]
    if kind in (".json", ".csv", ".tsv"):
        assert targets[0].read_bytes()[:1] == head[:1]
    if kind == ".parquet":
        assert pq.read_schema(targets[1]) == pq.read_schema(file)


def test_a_list_stays_a_list_whatever_its_name(tmp_path: Path) -> None:
    file = tmp_path / "MedQA-train.jsonl"  # a course's file: a list called .jsonl
    file.write_text(json.dumps([{"a": n} for n in range(10)], indent=2), "utf-8")
    outs = [io.BytesIO(), io.BytesIO(), io.BytesIO()]
    assert split(file, [8, 1, 1], outs, seed=0).sizes == [8, 1, 1]
    assert sum(len(json.loads(out.getvalue())) for out in outs) == 10


def test_seeds_and_copies(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text("\n".join(json.dumps({"a": n % 5}) for n in range(40)), "utf-8")

    def parts(seed: int) -> tuple[bytes, int]:
        outs = [io.BytesIO(), io.BytesIO()]
        done = split(file, [1, 1], outs, seed=seed)
        return outs[0].getvalue(), done.shared

    assert parts(1) == parts(1)
    assert parts(1)[0] != parts(2)[0]
    assert parts(1)[1] == 20, "every row of the second part is in the first too"


@pytest.mark.parametrize(
    ("count", "shares", "sizes"), [(10, [7, 3], [7, 3]), (11, [7, 3], [8, 3]), (3, [1, 1], [2, 1])]
)
def test_shares(count: int, shares: list[float], sizes: list[int]) -> None:
    assert share_out(count, shares) == sizes


def test_ratios() -> None:
    assert read_ratio("7:3") == [7, 3]
    assert read_ratio("0.8:0.1:0.1") == [0.8, 0.1, 0.1]
    for words in ("7", "7-3", "7:0", "1:1:1:1", "a:b", "7:-3", ""):
        with pytest.raises(UserError, match="is no ratio") as caught:
            read_ratio(words)
        assert caught.value.exit_code == 2


def test_too_few_rows(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text('{"a": 1}', "utf-8")
    with pytest.raises(UserError, match="has 1 row, too few for 2 parts"):
        split(file, [7, 3], [io.BytesIO(), io.BytesIO()], seed=0)
    with pytest.raises(UserError, match="There is no file"):
        split(tmp_path / "none.jsonl", [7, 3], [io.BytesIO(), io.BytesIO()], seed=0)
    with pytest.raises(UserError, match="of a kind that is not known"):
        split(tmp_path / "f.docx", [7, 3], [io.BytesIO(), io.BytesIO()], seed=0)


def test_repeating_as_the_llava_exercise(tmp_path: Path) -> None:
    file = tmp_path / "unique_data.json"
    rows = [
        {"id": n, "image": f"{n}.jpg", "conversations": [{"from": "human", "value": "<image>\n图"}]} for n in range(6)
    ]
    file.write_text(json.dumps(rows), "utf-8")
    out = io.BytesIO()
    assert repeat(file, 200, Path("repeated_data.json"), out) == (6, 1200)
    assert json.loads(out.getvalue()) == rows * 200
    lines = io.BytesIO()
    repeat(make(".parquet", tmp_path), 2, Path("x.jsonl"), lines)
    assert len(lines.getvalue().splitlines()) == 202
    with pytest.raises(UserError, match=r"Name it x\.json or x\.jsonl"):
        repeat(file, 2, Path("x.csv"), io.BytesIO())


def test_arxiv(tmp_path: Path) -> None:
    papers = [
        {"id": "1", "categories": "cs.AI math.CO", "update_date": "2020-01-01", "title": "一"},
        {"id": "2", "categories": "cs.AI", "update_date": "2019-12-31", "title": "too old"},
        {"id": "3", "categories": "cs.AIX hep-th", "update_date": "2023-05-05", "title": "other"},
        {"id": "4", "categories": "eess.IV cs.CV", "update_date": "2023-05-05", "title": "four"},
    ]
    source = tmp_path / "arxiv.json"
    source.write_text("\n".join(map(json.dumps, papers)), "utf-8")
    out = io.BytesIO()
    count = choose_papers(source, out, categories=["cs.AI", "cs.CV"], start_date="2020-01-01")
    assert count == 2
    assert json.loads(out.getvalue()) == [papers[0], papers[3]]
    source.write_text('{"id": "1"}', "utf-8")
    with pytest.raises(UserError, match=r"Row 1 of .* has no text categories"):
        choose_papers(source, io.BytesIO(), categories=["cs.AI"], start_date="2020-01-01")


def make_refcoco(folder: Path) -> Path:
    for name, splitter in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        (folder / name).mkdir(parents=True)
        instances = {
            "images": [{"id": 9, "width": 640, "height": 480}],
            "annotations": [{"id": 5, "bbox": [64.5, 48, 320, 240.9]}],
        }
        (folder / name / "instances.json").write_text(json.dumps(instances), "utf-8")
        sentence = {"raw": "the big dog", "sent_id": 1, "tokens": ["the", "big", "dog"]}
        ref = {"ref_id": 1, "ann_id": 5, "image_id": 9, "category_id": 1, "split": "train", "sentences": [sentence] * 2}
        refs = [ref, {**ref, "split": "testA"}]
        (folder / name / f"refs({splitter}).p").write_bytes(pickle.dumps(refs, protocol=0))
    return folder


def test_refcoco(tmp_path: Path) -> None:
    images = tmp_path / "train2017"
    images.mkdir()
    out = io.BytesIO()
    made = collect(make_refcoco(tmp_path / "ann"), images, out)
    rows = json.loads(out.getvalue())
    assert rows[0] == {
        "id": "refcoco-unc-000000000009-the_big_dog",
        "image": "000000000009.jpg",
        "sents": "the big dog",
        "bbox": [10, 10, 60, 60],
    }
    assert [row["id"].partition("-")[0] for row in rows] == ["refcoco", "refcoco+", "refcocog"]
    assert (made.rows, made.copies, made.images, made.missing) == (3, 3, 1, 1)
    assert to_corners([0, 0, 10, 10], 10, 20) == [0, 0, 100, 50]


class Evil:
    """A pickle of this would call a function when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Ask for a call."""
        return os.mkdir, ("evil",)


def test_pickles_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_refcoco(tmp_path / "ann")
    (folder / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(UserError, match="cannot be read: it asks for"):
        collect(folder, tmp_path, io.BytesIO())
    assert not (tmp_path / "evil").exists()
    (folder / "refcoco" / "refs(unc).p").write_bytes(b"\x80garbage")
    with pytest.raises(UserError, match="cannot be read"):
        collect(folder, tmp_path, io.BytesIO())
    with pytest.raises(UserError, match="name it with --ann-path"):
        collect(tmp_path / "nothing", tmp_path, io.BytesIO())
