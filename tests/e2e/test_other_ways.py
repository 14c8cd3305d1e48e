"""The other ways through the house, typed as people type them: YAML, 8 bits, all weights, plain text, every table."""

import csv
import json
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from course import BUILT_IN, xtuner

QUESTION, ANSWER = "请介绍一下你自己", "我是小河，阿青的助手"
COLUMNS = ("instruction", "input", "output")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The built-in model under the name of a model of one's own."""
    (tmp_path / "model").symlink_to(BUILT_IN)
    return tmp_path


def record(run: Path) -> dict[str, dict[str, object]]:
    """Read the record of a run that has ended well."""
    content = json.loads((run / "run.json").read_text("utf-8"))
    assert content["status"] == "finished"
    return content


def test_all_weights_from_yaml_to_a_conversation(folder: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]}] * 8
    (folder / "me.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    (folder / "full.yaml").write_text(
        "model: {path: ./model}\n"
        "data: {train: me.jsonl, template: internlm2_chat, max_length: 256, cache: cache}\n"
        "optim: {lr: 5e-5}\n"
        "loop: {epochs: 30}\n",
        "utf-8",
    )
    screen = xtuner(folder, "train", "full.yaml", "max_iters=12")
    run = "work_dirs/full"
    assert f"chat {run}" in screen
    assert not (folder / run / "adapter").exists()
    assert record(folder / run)["spec"]["model"]["lora"] is None  # type: ignore[index]
    assert ANSWER in xtuner(folder, "chat", run, "--prompt", QUESTION)
    xtuner(folder, "convert", "pth_to_hf", run, "./hf", "--fp32", "--max-shard-size", "6MB")
    assert len(list((folder / "hf").glob("model-*.safetensors"))) > 1
    xtuner(folder, "convert", "merge", run, "./merged")
    assert ANSWER in xtuner(folder, "chat", "./merged", "--prompt", QUESTION)


def test_tables_and_eight_bits_without_a_config(folder: Path) -> None:
    rows = [(QUESTION, "", ANSWER), ("翻译", "河", "river")]
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    book = openpyxl.Workbook()
    for row in (COLUMNS, *rows):
        book.active.append(row)  # type: ignore[union-attr]
    book.save(folder / "b.xlsx")
    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "c.parquet")  # type: ignore[no-untyped-call]
    words = ["--model", "./model", "--data", "a.csv", "b.xlsx", "c.parquet", "--bits", "8"]
    settings = ["data.cache=cache", "max_iters=2", "r=4", "probe=null", "max_length=64"]
    screen = xtuner(folder, "train", *words, *settings, "--work-dir", "w")
    assert "train: [a.csv, b.xlsx, c.parquet]" in screen, "what it chose is shown"
    run = record(folder / "w")
    assert run["data"]["report"]["samples"] == 6  # type: ignore[index]
    assert run["spec"]["model"]["quant"]["bits"] == 8  # type: ignore[index]
    assert run["template"] == "internlm2_chat"
    assert (folder / "w" / "adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "w" / "model-a.yaml").is_file(), "and saved"


def test_plain_text_with_the_config_of_the_course(folder: Path) -> None:
    rows = [{"text": f"第{number}条：小河从山里来，流过村庄，一直流到海里。"} for number in range(20)]
    (folder / "text.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    name = "internlm2_1_8b_full_custom_pretrain_e1"
    xtuner(folder, "copy-cfg", name, ".")
    config = folder / f"{name}_copy.py"
    text = config.read_text("utf-8")
    for old, new in (
        ("'internlm/internlm2-1_8b'", "'./model'"),
        ("['/path/to/json/file.json']", "['text.json']"),
        ("max_length = 2048", "max_length = 64"),
        ("accumulative_counts = 16", "accumulative_counts = 1"),
    ):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text, "utf-8")
    screen = xtuner(folder, "train", config.name, "max_iters=4", "probe.max_new_tokens=5")
    assert "Num train samples" in screen
    run = folder / "work_dirs" / f"{name}_copy"
    assert record(run)["template"] is None
    lines = [path.read_text().splitlines() for path in run.glob("2*/vis_data/scalars.json")]
    assert json.loads(lines[0][-1])["iter"] == 4
    assert (run / "iter_4.pth").is_file()
