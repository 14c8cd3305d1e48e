"""The commands that look at data and rework it: what they print, which files they write, with what they end."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from xtuner.cli.load_data import is_config
from xtuner.cli.main import main

TOKENIZER = str(Path(__file__).parents[1] / "golden" / "internlm2")
FORMATS_OF_0_1 = """alpaca alpaca_zh arxiv code_alpaca colors crime_kg_assitan default law_reference
llava_image_only llava medical msagent_react oasst1 openai openorca pretrain sql stack_exchange tiny_codes wizardlm"""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def talk(asked: str, answered: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered, **more}]}


def write(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return name


def write_config(**data: Any) -> str:
    Path("run.yaml").write_text(json.dumps({"model": {"path": TOKENIZER}, "data": data}), "utf-8")
    return "run.yaml"


def test_show_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    file = write("d.jsonl", talk("x", "y"), talk("你好", "小书"))
    assert main(["data", "SHOW", file, "--model", TOKENIZER, "--index", "2", "max_length=64"]) == 0
    shown = capsys.readouterr().out
    assert "d.jsonl, row 2; format openai, template internlm2_chat" in shown
    assert "[[小书<|im_end|>]]" in shown
    assert main(["data", "show", "--model", TOKENIZER, file, "--template", "vicuna"]) == 0
    assert "USER: x ASSISTANT:[[y</s>]]" in capsys.readouterr().out


def test_a_file_alone_takes_the_built_in_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", write("d.jsonl", talk("你好", "小书"))]) == 0
    said = capsys.readouterr()
    assert "[[小书<|im_end|>]]" in said.out
    assert said.err == "No --model is given: tokens and template are those of the built-in model.\n"


def test_show_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    sources = [write("a.jsonl", talk("a", "1")), write("b.jsonl", talk("b", "2")), write("c.jsonl", talk("c", "3"))]
    config = write_config(train=sources)
    assert main(["data", "show", config, "--source", "3", "data.train.0.system=S"]) == 0
    assert "c.jsonl, row 1" in capsys.readouterr().out
    assert main(["data", "show", config, "data.template=llama3_chat"]) == 0
    assert "template llama3_chat" in capsys.readouterr().out
    assert main(["data", "lint", config, sources[0]]) == 2
    assert "run.yaml is a config, and 1 more" in capsys.readouterr().err


def test_what_is_a_config() -> None:
    write("d.jsonl", {"model": "x", "data": "y"})
    Path("one_row.json").write_text('{"model": "x", "text": "y"}')
    Path("spec.json").write_text('{"model": {"path": "m"}, "data": {"train": "d.jsonl"}}')
    Path("rows.json").write_text("[]")
    Path("run").mkdir()
    Path("run/run.json").write_text('{"spec": {}}')
    Path("folder").mkdir()
    for word in ("spec.json", "run", "run/", "run/run.json", "internlm2_chat_1_8b_qlora_alpaca_e3", "typo_of_a_name"):
        assert is_config(word), word
    for word in ("d.jsonl", "one_row.json", "rows.json", "folder", "missing.csv", "tatsu-lab/alpaca"):
        assert not is_config(word), word


def test_lint_ends_with_one_when_a_run_would_be_pointless(capsys: pytest.CaptureFixture[str]) -> None:
    good = write("good.jsonl", talk("a", "stop <|im_end|>"))
    assert main(["data", "lint", good, "--model", TOKENIZER]) == 0
    assert "becomes a special token: 1 (row 1)." in capsys.readouterr().out
    bad = write("bad.jsonl", talk("a", "b", loss=False))
    assert main(["data", "lint", good, bad, "--model", TOKENIZER]) == 1
    assert "A run would be pointless: bad.jsonl: none of its rows can be learned." in capsys.readouterr().out
    assert main(["data", "lint", "nothing.jsonl", "--model", TOKENIZER]) == 1


def test_slips(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["data"], "usage: xtuner data MODE"),
        (["data", "shwo"], "Did you mean show?"),
        (["data", "show"], "No config and no data file is named."),
        (["data", "convert", "a.xlsx", "b.jsonl", "--question", "q"], "--question and --answer go together."),
        (["data", "split", "a.jsonl", "7-3"], "7-3 is no ratio"),
        (["data", "repeat", "a.jsonl", "0", "b.jsonl"], "0 is no number of times."),
        (["data", "split", "a.jsonl", "7:3", "--sed", "1"], "Unrecognized arguments: --sed 1"),
        (["preprocess"], "usage: xtuner preprocess"),
        (["preprocess", "arxiv", "a", "b", "--start-date", "yesterday"], "is no date like 2020-01-01"),
    ):
        assert main(words) == 2, words
        assert said in capsys.readouterr().err
    for mode in ("show", "lint", "convert", "split", "repeat"):
        assert main(["data", mode, "--help"]) == 0
        assert f"usage: xtuner data {mode} " in capsys.readouterr().out
    assert main(["data", "show", write("d.jsonl", talk("a", "b")), "--model", "./nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
    Path("far.yaml").write_text("{model: {path: ./nowhere}, data: {train: d.jsonl}}")
    assert main(["data", "show", "far.yaml"]) == 1
    assert "--model FOLDER looks at the data with another tokenizer." in capsys.readouterr().err


def test_medqa_from_table_to_two_files(capsys: pytest.CaptureFixture[str]) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["问题", "答案"])
    for number in range(10):
        sheet.append([f"问 {number}", f"答 {number}"])
    sheet.append(["没有答案", None])
    book.save("medqa.xlsx")
    words = ["data", "convert", "medqa.xlsx", "out.jsonl", "--question", "问题", "--answer", "答案", "--system", "医生"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert '"input": "问 0"' in said
    assert "Left out: nothing in column 答案: 1 (row 11)." in said
    assert said.endswith("out.jsonl: 10 of 11 rows.\n")
    before = Path("out.jsonl").read_text("utf-8")
    assert main(["data", "split", "out.jsonl", "7:3", "--seed", "5"]) == 0
    said = capsys.readouterr().out
    assert "out-train.jsonl: 7 rows\nout-test.jsonl: 3 rows\n10 rows in all, none left out" in said
    lines = Path("out-train.jsonl").read_text("utf-8") + Path("out-test.jsonl").read_text("utf-8")
    assert sorted(lines.splitlines()) == sorted(before.splitlines())


def test_nothing_is_overwritten_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    write("d.json", talk("a", "b"))
    Path("out.jsonl").write_text("mine", "utf-8")
    assert main(["data", "repeat", "d.json", "3", "out.jsonl"]) == 0
    assert "out.jsonl was there already; the old one is now out.jsonl.bak" in capsys.readouterr().out
    assert Path("out.jsonl.bak").read_text("utf-8") == "mine"
    assert len(Path("out.jsonl").read_text("utf-8").splitlines()) == 3
    assert main(["data", "repeat", "d.json", "4", "out.jsonl", "--force"]) == 0
    assert not Path("out.jsonl.bak1").exists()
    Path("broken.json").write_text('[{"a": 1},', "utf-8")
    assert main(["data", "repeat", "broken.json", "2", "out.jsonl"]) == 1
    assert len(Path("out.jsonl").read_text("utf-8").splitlines()) == 4, "a failure leaves what was there"
    assert sorted(path.name for path in Path().iterdir() if path.name.startswith((".out", "out"))) == [
        "out.jsonl",
        "out.jsonl.bak",
    ]
    assert main(["data", "repeat", "d.json", "2", "d.json"]) == 0, "also onto itself"
    assert (len(Path("d.json").read_text("utf-8").splitlines()), Path("d.json.bak").exists()) == (2, True)
    assert main(["data", "repeat", "d.json", "2", "new/folder/out.jsonl"]) == 0
    Path("a_folder.jsonl").mkdir()
    assert main(["data", "repeat", "d.json", "2", "a_folder.jsonl"]) == 1
    assert "it is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("show", [[], ["--show", "labels"], ["--show", "all"]])
def test_log_dataset(show: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(train=write("d.jsonl", talk("你好", "小书")), pack=False)
    assert main(["LOG-dataset", config, *show, "max_length=64"]) == 0
    titles = re.findall(r"^#{20}   (.*?)   #{20}$", capsys.readouterr().out, re.MULTILINE)
    wanted = {"": ["text"], "labels": ["labels"], "all": ["text", "text(masked)", "input_ids", "labels"]}
    assert titles == wanted[(show or [""])[-1]]


def test_check_custom_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(train={"path": write("d.jsonl", talk("你好", "小书")), "format": "openai"})
    assert main(["Check-Custom-Dataset", config]) == 0
    assert "[{'input': '你好', 'output': '小书'}]" in capsys.readouterr().out
    assert main(["check-custom-dataset", config, "data.train.0.format=conversation"]) == 1
    said = capsys.readouterr().err
    assert "d.jsonl does not fit the format conversation" in said
    assert "set dataset_map_fn=openai_map_fn" in said


def test_list_dataset_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list-dataset-format"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["=" * 22 + "DATASET_FORMAT" + "=" * 22, *FORMATS_OF_0_1.split(), "=" * 58]


def test_preprocess_arxiv(capsys: pytest.CaptureFixture[str]) -> None:
    write("arxiv.json", {"categories": "cs.CL", "update_date": "2023-01-01"}, {"categories": "x", "update_date": "2"})
    assert main(["preprocess", "ARXIV", "arxiv.json", "out/x.json", "--categories", "cs.CL", "cs.AI"]) == 0
    assert capsys.readouterr().out == "Save to out/x.json\n1 items\n"
    assert json.loads(Path("out/x.json").read_text("utf-8")) == [{"categories": "cs.CL", "update_date": "2023-01-01"}]
    assert main(["preprocess", "refcoco"]) == 1
    assert "name it with --ann-path" in capsys.readouterr().err


def test_reworking_data_needs_no_torch() -> None:
    write("d.jsonl", *(talk(str(number), "b") for number in range(5)))
    code = (
        "import sys\nfrom xtuner.cli.main import main\n"
        "for words in ['convert d.jsonl o.jsonl', 'split d.jsonl 3:2', 'repeat d.jsonl 2 r.json']:\n"
        "    assert main(['data', *words.split()]) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
