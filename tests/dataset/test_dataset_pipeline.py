"""From a DataSpec to packs: counts that are said, the cache, validation, several sources, bad input, bounded memory."""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtuner.config.spec import DataSpec, SourceSpec
from xtuner.conversation.builtin import find_template
from xtuner.conversation.encode import Encoder
from xtuner.conversation.jinja import to_jinja
from xtuner.dataset.cache import PART, cache_folder, make_key, new_entry, tidy
from xtuner.dataset.encode import Job
from xtuner.dataset.formats.turn import conversation
from xtuner.dataset.parallel import encode_source
from xtuner.dataset.pipeline import Prepared, build_dataset, choose_template
from xtuner.dataset.source import open_source
from xtuner.dataset.store import SampleWriter
from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer

TOKENIZER = Path(__file__).parents[1] / "golden" / "internlm2"
SENTENCES = ["我是小书的小助手。", "I am Shu's little helper."]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(TOKENIZER))


def turn(asked: str, answered: str = "fine") -> dict[str, Any]:
    return {"conversation": [{"input": asked, "output": answered}]}


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(file)


class Builder:
    """Builds data with a cache of its own, and remembers what was told."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.cache, self.tokenizer = folder / "cache", tokenizer
        self.told: list[str] = []

    def __call__(self, train: Any, *, seed: int = 0, **options: Any) -> Prepared:
        values = {"template": "internlm2_chat", "max_length": 256, "cache": str(self.cache)} | options
        self.told.clear()
        return build_dataset(DataSpec(train=train, **values), self.tokenizer, seed=seed, tell=self.told.append)

    def entries(self) -> set[str]:
        return {entry.name for entry in self.cache.iterdir()}


@pytest.fixture
def build(tmp_path: Path, tokenizer: Any) -> Builder:
    return Builder(tmp_path, tokenizer)


def texts(data: Any, tokenizer: Any) -> list[str]:
    """Every sample as text, in the order of the packs."""
    found = []
    for index in range(len(data)):
        pack = data[index]
        ends = np.cumsum(pack.lengths)
        found += [tokenizer.decode(part) for part in np.split(pack.input_ids, ends[:-1])]
    return found


def test_the_course_data(build: Builder, tmp_path: Path) -> None:
    # datas/assistant.json of the course: 7,502 rows, two conversations repeated
    rows = [turn("请介绍一下你自己", SENTENCES[0]), turn("Who are you?", SENTENCES[1])] * 3751
    data = build(write(tmp_path / "assistant.json", rows), max_length=2048)
    report = data.report
    assert (report.rows, report.samples, report.duplicates, report.kept_rows) == (7502, 7502, 7500, 7502)
    assert report.packs == len(data.train)
    assert report.tokens == sum(len(data.train[index].input_ids) for index in range(len(data.train)))
    learned = [(data.train[i].labels != -100).sum() for i in range(len(data.train))]
    assert report.trained_tokens == sum(learned)
    assert report.tokens > 0.95 * 2048 * report.packs
    said = "\n".join(report.lines())
    assert "7,502 rows of the format conversation" in said
    assert "7,500 of 7,502 rows are exact copies of others; 2 are different." in said
    assert f"in {report.packs:,} packs of at most 2,048 tokens" in said
    assert "learned (" in said
    assert json.loads(json.dumps(report.to_dict()))["duplicates"] == 7500


def test_every_sample_is_whole_and_alone_in_its_segment(build: Builder, tmp_path: Path, tokenizer: Any) -> None:
    rows = [turn("q" * (number % 40), f"answer {number}") for number in range(300)]
    path = write(tmp_path / "a.json", rows)
    packed, apart = build(path), build(path, pack=False)
    assert len(apart.train) == 300
    assert 1 < len(packed.train) < 100
    ordered = texts(apart.train, tokenizer)
    assert sorted(texts(packed.train, tokenizer)) == sorted(ordered)
    assert [f"answer {number}<|im_end|>" in text for number, text in enumerate(ordered)] == [True] * 300
    for index in range(len(packed.train)):
        pack = packed.train[index]
        assert len(pack.input_ids) == len(pack.labels) == sum(pack.lengths) <= 256
        assert pack.labels[0] == -100
        assert set(pack.labels[pack.labels != -100]) <= set(pack.input_ids)
    assert apart.train.origin(4) == f"{path}, rows 5"
    assert "300 samples, each on its own." in apart.report.lines()


def test_the_seed_decides_the_packs(build: Builder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [turn("q" * (n % 40), str(n)) for n in range(200)])
    one, same, other = build(path), build(path), build(path, seed=1)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert np.array_equal(one.train.packs.members, same.train.packs.members)
    assert not np.array_equal(one.train.packs.members, other.train.packs.members)


def test_the_fingerprint_is_of_the_data_not_of_the_program(
    build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.json", [turn("a"), turn("b")])
    before = build(path).fingerprint
    monkeypatch.setattr("xtuner.dataset.prepare.make_key", lambda *parts: make_key("a later version", *parts))
    assert build(path).fingerprint == before
    assert len(build.entries()) == 2, "prepared again"
    assert build(path, pack=False).fingerprint != before
    assert build(write(tmp_path / "a.json", [turn("a"), turn("c")])).fingerprint != before


def test_the_cache_knows_what_data_depend_on(build: Builder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [turn("a"), turn("b")])
    build(path)
    assert build.told == [f"Preparing {path} (format conversation)."]
    first = build.entries()
    assert len(first) == 1
    again = build(path, pack=False, shuffle=False, seed=9)  # these do not touch tokens
    assert build.told == []
    assert build.entries() == first
    assert "(prepared before)" in again.report.lines()[0]
    (tmp_path / "copy.json").write_bytes(Path(path).read_bytes())
    copied = build(str(tmp_path / "copy.json"))
    assert build.entries() == first
    assert copied.train.origin(0) == f"{tmp_path / 'copy.json'}, rows 1, 2"
    for options in ({"template": "qwen_chat"}, {"max_length": 99}):
        build(path, **options)
    build({"path": path, "system": "Be kind."})
    build({"path": path, "format": "conversation", "rename": {"conversation": "conversation"}})
    build({"path": path, "limit": 1})
    build({"path": path, "limit": 1}, seed=1)
    write(tmp_path / "a.json", [turn("a"), turn("c")])
    build(path)
    other = Builder(tmp_path, load_tokenizer(str(TOKENIZER), options={"eos_token": "<|im_end|>"}))
    other(path)
    assert len(build.entries()) == 9


def test_a_changed_function_makes_new_data(build: Builder, tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.json", [{"q": "x", "a": "y"}])
    code = tmp_path / "mine.py"
    for answer in ("'one'", "'two'"):
        code.write_text(f"def read(row):\n    return {{'conversation': [{{'input': row['q'], 'output': {answer}}}]}}\n")
        data = build({"path": path, "format": f"{code}:read"})
        assert f"{answer[1:-1]}<|im_end|>" in texts(data.train, tokenizer)[0]
    assert len(build.entries()) == 2


def test_a_damaged_entry_is_made_again(build: Builder, tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.json", [turn("a"), turn("b")])
    expected = texts(build(path).train, tokenizer)
    (entry,) = build.cache.iterdir()
    (entry / "ids.i32").write_bytes(b"1234")
    assert texts(build(path).train, tokenizer) == expected
    assert build.told
    (entry / "about.json").write_text("{")
    assert texts(build(path).train, tokenizer) == expected


def test_nothing_half_written_is_left(build: Builder, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(turn("a"))] * 300 + ["{wrong"]))
    with pytest.raises(UserError, match="line 301"):
        build(str(tmp_path / "a.jsonl"))
    assert build.entries() == set()
    stale = build.cache / f"{'0' * 32}.1{PART}"
    stale.mkdir()
    recent = build.cache / f"{'1' * 32}.1{PART}"
    recent.mkdir()
    os.utime(stale, (0, 0))
    tidy(build.cache)
    assert build.entries() == {recent.name}


def test_nothing_of_others_is_tidied_away(build: Builder, tmp_path: Path) -> None:
    """`data.cache` may name a folder with other things in it, however old."""
    build(write(tmp_path / "a.json", [turn("a")]))
    (entry,) = build.cache.iterdir()
    for name in ("photos", "2" * 32, f"backup{PART}"):
        (build.cache / name).mkdir()
    (build.cache / "photos" / "about.json").touch()
    for folder in build.cache.iterdir():
        os.utime(folder, (0, 0))
    tidy(build.cache)
    assert build.entries() == {"photos", "2" * 32, f"backup{PART}"}, entry.name


def _fill(folder: Path, index: int) -> None:
    with new_entry(folder, "key") as part:
        (part / "value").write_text(str(index))


def test_processes_may_prepare_the_same_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, index)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key" / "value").read_text() in "0123"


def test_a_full_disk_and_a_closed_folder_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full"), new_entry(tmp_path, "key"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*data.cache=FOLDER"), new_entry(tmp_path / "file", "key"):
        pass


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder(None) == Path("/somewhere/xtuner/data")
    assert cache_folder("here") == Path("here")


def test_rows_that_are_left_out_are_counted_and_named(build: Builder, tmp_path: Path) -> None:
    rows = [
        turn("a"),
        {"conversation": []},
        turn("long " * 200),
        turn("b", "long " * 200),
        {"conversation": [{"input": "x"}]},
    ]
    data = build(write(tmp_path / "a.json", rows))
    said = "\n".join(data.report.lines())
    assert "an empty conversation: 1 (row 2)" in said
    assert "max_length ends before the first answer: 1 (row 3)" in said
    assert "a turn without output: 1 (row 5)" in said
    assert "cut at the end: 1 (row 4)" in said
    assert data.report.samples == 2


def test_when_nothing_is_left_the_reason_is_said(build: Builder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [{"messages": [{"role": "user", "content": "a"}]}] * 7)
    with pytest.raises(UserError, match=r"None of the 7 rows .* no assistant turn: 7 \(rows 1, 2, 3, 4, 5, \.\.\.\)"):
        build(path)
    path = write(tmp_path / "b.json", [turn("long " * 200), turn("longer " * 200)])
    with pytest.raises(UserError, match=r"max_length is 256, but even the shortest prompt .* has \d+ tokens") as caught:
        build(path)
    assert "data.max_length" in caught.value.fix
    path = write(tmp_path / "d.json", [turn("long " * 200), {"conversation": []}])
    with pytest.raises(UserError, match=r"None of the 2 rows .*Set data.max_length \(now 256\) higher"):
        build(path)
    path = write(tmp_path / "c.json", [])
    with pytest.raises(UserError, match="holds no rows"):
        build(path)
    assert build.entries() == set()


def test_bad_settings_are_sentences(build: Builder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [turn("a")])
    with pytest.raises(UserError, match=r"no chat template called internlm2-chat.*internlm2_chat"):
        build(path, template="internlm2-chat")
    with pytest.raises(UserError, match=r"no row format called alpacca.*alpaca"):
        build({"path": path, "format": "alpacca"})
    with pytest.raises(UserError, match=r"no column talk to rename.*conversation"):
        build({"path": path, "rename": {"talk": "conversation"}})
    with pytest.raises(UserError, match="no layout that is known"):
        build(write(tmp_path / "b.json", [{"foo": "a"}]))
    with pytest.raises(UserError, match="There is no data file"):
        build(str(tmp_path / "nowhere.json"))
    with pytest.raises(UserError, match="There is no data file"):
        build(path, validation=str(tmp_path / "nowhere.json"))
    assert build.told == []  # found before any work was done
    with pytest.raises(UserError, match="is no chat template"):
        build(path, template="json:loads")


def test_several_sources_with_limit_rename_and_system(build: Builder, tmp_path: Path, tokenizer: Any) -> None:
    one = write(tmp_path / "one.json", [turn(f"one {n}") for n in range(50)])
    two = write(tmp_path / "two.json", [{"frage": f"two {n}", "antwort": "ja", "id": n} for n in range(30)])
    sources = [
        {"path": one, "limit": 10},
        {"path": two, "rename": {"frage": "question", "antwort": "answer"}, "system": "Be kind."},
    ]
    data = build(sources, pack=False)
    assert [source.samples for source in data.report.sources] == [10, 30]
    assert data.report.rows == 40
    assert "  Columns that are not used: id." in data.report.lines()
    found = texts(data.train, tokenizer)
    assert len(found) == 40
    assert sum("Be kind." in text for text in found) == 30
    drawn = [text for text in found if "one " in text]
    assert len(set(drawn)) == 10
    assert sorted(drawn) != sorted(f for f in texts(build(sources, pack=False, seed=1).train, tokenizer) if "one " in f)
    assert data.train.origin(39) == f"{two}, rows 30"
    assert build({"path": one, "limit": 99}).report.rows == 50


def test_a_share_for_validation_keeps_copies_together(build: Builder, tmp_path: Path, tokenizer: Any) -> None:
    rows = [turn(f"q {n % 150}") for n in range(200)]
    path = write(tmp_path / "a.json", rows)
    data = build(path, validation=0.1)
    assert data.validation is not None
    train, held = texts(data.train, tokenizer), texts(data.validation, tokenizer)
    assert len(train) + len(held) == 200
    assert 15 <= len(held) <= 20
    assert not set(train) & set(held)
    assert data.report.validation_samples == len(held)
    assert data.report.samples == len(train)
    assert data.report.duplicates == len(train) - len(set(train))
    again, other = build(path, validation=0.1), build(path, validation=0.1, seed=1)
    assert again.validation is not None
    assert other.validation is not None
    assert texts(again.validation, tokenizer) == held
    assert set(texts(other.validation, tokenizer)) != set(held)


def test_a_share_that_cannot_be_had_is_an_error(build: Builder, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [turn("a"), turn("b")] * 50)
    with pytest.raises(UserError, match="only 2 of them are different"):
        build(path, validation=0.05)
    with pytest.raises(UserError, match="Give a number between 0 and 1"):
        build(path, validation=1.5)


def test_files_for_validation(build: Builder, tmp_path: Path, tokenizer: Any) -> None:
    train = write(tmp_path / "a.json", [turn("a"), turn("b")])
    held = write(tmp_path / "b.json", [turn("b"), turn("c")])
    data = build(train, validation=held)
    assert data.validation is not None
    assert len(texts(data.validation, tokenizer)) == 2
    said = "\n".join(data.report.lines())
    assert f"Validation: {held}: 2 rows" in said
    assert "Of these, 1 are also trained on" in said


def test_the_template_of_the_model_is_found(build: Builder, tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.json", [turn("a")])
    data = build(path, template=None)  # the golden folder writes its chat template down
    assert data.template is not None
    assert data.template.name == "internlm2_chat"
    distant = load_tokenizer(str(TOKENIZER))
    distant.name_or_path = "somebody/on-the-hub"
    distant.chat_template = to_jinja(find_template("phi3_chat"))
    assert choose_template(None, distant) == find_template("phi3_chat")
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from xtuner.conversation.template import ChatTemplate\n"
        "TALK = ChatTemplate('talk', instruction='Q: {input} A: ', sep=' / ')\n"
    )
    assert "Q: a A: fine" in texts(build(path, template=f"{mine}:TALK").train, tokenizer)[0]


def test_plain_texts_need_no_template(build: Builder, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(TOKENIZER.parent / "llama_tokenizer"))
    bare = Builder(tmp_path, tokenizer)
    path = write(tmp_path / "a.json", [{"text": "once upon a time " * 100}, {"text": "the end"}])
    data = bare(path, template=None)
    assert data.template is None
    assert data.report.sources[0].format == "text"
    assert data.report.duplicates == 0
    assert data.report.kept_rows == 2
    assert "learned in parts: 1 (row 1)" in "\n".join(data.report.lines())
    assert data.report.trained_tokens == data.report.tokens - data.report.samples
    with pytest.raises(UserError, match="does not say which chat template"):
        bare(write(tmp_path / "b.json", [turn("a")]), template=None)


def test_a_base_model_takes_the_template_of_its_relatives(tmp_path: Path) -> None:
    folder = tmp_path / "internlm-7b"
    shutil.copytree(TOKENIZER.parent / "llama_tokenizer", folder)
    (folder / "config.json").write_text('{"model_type": "internlm"}')
    tokenizer = load_tokenizer(str(TOKENIZER.parent / "llama_tokenizer"))
    tokenizer.name_or_path = str(folder)
    bare = Builder(tmp_path, tokenizer)
    data = bare(write(tmp_path / "a.json", [turn("a")]), template=None)
    assert data.template == find_template("internlm_chat")
    assert "conversations are spelled as internlm_chat" in "\n".join(data.report.lines())
    named = bare(write(tmp_path / "a.json", [turn("a")]), template="qwen_chat")
    assert "looks like a base model" not in "\n".join(named.report.lines())
    plain = bare(write(tmp_path / "b.json", [{"text": "once upon a time"}]), template=None)
    assert plain.template is None
    assert "looks like a base model" not in "\n".join(plain.report.lines())


def test_processes_make_what_one_makes(tmp_path: Path, tokenizer: Any) -> None:
    rows = [turn(f"q {n % 1700}", f"a {n}") if n % 9 else {"conversation": []} for n in range(4000)]
    source = open_source(SourceSpec(path=write(tmp_path / "a.json", rows)))
    job = Job("a", "conversation", conversation, True, find_template("internlm2_chat"), Encoder(tokenizer), 256)
    for alone, together in zip(
        encode_source(job, source, workers=1), encode_source(job, source, workers=3), strict=True
    ):
        assert np.array_equal(alone.ids, together.ids)
        assert np.array_equal(alone.trained, together.trained)
        assert (alone.rows, alone.groups, alone.dropped) == (together.rows, together.groups, together.dropped)


def test_errors_cross_processes(tmp_path: Path, tokenizer: Any) -> None:
    def fail(row: Any) -> Any:
        return {"conversation": [{"input": "a", "output": str(1 / (1500 - row["n"]))}]}

    def die(row: Any) -> Any:
        os.kill(os.getpid(), 9)

    source = open_source(SourceSpec(path=write(tmp_path / "a.json", [{"n": n} for n in range(3000)])))
    job = Job("a", "mine.py:read", fail, False, find_template("internlm2_chat"), Encoder(tokenizer), 256)
    with pytest.raises(UserError, match=r"failed on row 1501 .*ZeroDivisionError") as caught:
        list(encode_source(job, source, workers=2))
    assert caught.value.fix == "Mend the function."
    with pytest.raises(UserError, match="memory ran out"):
        list(encode_source(dataclasses.replace(job, read=die), source, workers=2))


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A scaled-down measure of the promise (1,000,000 rows in 2 GB): 15,000 rows of 600 bytes add next to nothing."""
    row = json.dumps(turn("what is one plus two? " * 13, "it is three. " * 20))
    (tmp_path / "big.jsonl").write_text((row + "\n") * 15_000)
    write(tmp_path / "small.json", [turn("a")])
    code = """
import resource, sys
from xtuner.config.spec import DataSpec
from xtuner.dataset.pipeline import build_dataset

class Letters:
    bos_token_id, eos_token_id = 1, 2
    def encode(self, text, add_special_tokens):
        return list(text.encode())

def build(path):
    spec = DataSpec(train=[path], template="internlm2_chat", cache=sys.argv[1] + "/cache")
    return build_dataset(spec, Letters(), seed=0).report.samples

build(sys.argv[1] + "/small.json")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
samples = build(sys.argv[1] + "/big.jsonl")
after = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(samples, (after - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    samples, megabytes = map(int, done.stdout.split())
    assert samples == 15_000
    assert megabytes < 120


def test_a_writer_of_nothing_makes_empty_files(tmp_path: Path) -> None:
    SampleWriter(tmp_path).close()
    assert all(file.stat().st_size == 0 for file in tmp_path.iterdir())


def test_what_we_exported_is_recognised(build: Builder, tmp_path: Path, tokenizer: Any) -> None:
    folder = tmp_path / "merged"
    copy = load_tokenizer(str(TOKENIZER))
    copy.chat_template = to_jinja(find_template("zephyr"))
    copy.save_pretrained(folder)
    data = Builder(tmp_path, load_tokenizer(str(folder)))(write(tmp_path / "a.json", [turn("a")]), template=None)
    assert data.template is not None
    assert data.template.name == "zephyr"


def test_a_first_row_that_cannot_be_used_does_not_hide_the_layout(build: Builder, tmp_path: Path) -> None:
    bad = [{"conversation": [{"input": "q"}]}, {"conversation": None}]
    (tmp_path / "a.json").write_text(json.dumps([*bad, turn("a"), turn("b")]))
    report = build(str(tmp_path / "a.json")).report
    assert (report.rows, report.samples) == (4, 2)
    (tmp_path / "b.json").write_text(json.dumps(bad[:1] * 3))
    with pytest.raises(UserError, match=r"None of the 3 rows .* a turn without output: 3"):
        build(str(tmp_path / "b.json"))
