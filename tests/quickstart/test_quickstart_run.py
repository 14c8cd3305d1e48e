"""`xtuner quickstart`: the whole way with a short training, and what it refuses."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from xtuner.apps.quickstart import Outcome, ask, check_name, prepare_folder, quickstart
from xtuner.apps.quickstart_words import WORDS
from xtuner.checkpoint.run_record import read_run
from xtuner.cli.main import main
from xtuner.cli.quickstart import guess_language
from xtuner.errors import UserError
from xtuner.generate.load import load_chat

NAME, AUTHOR = "龘小Nova🌙", "Ana-María 实验室"


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, str]:
    """One quickstart with half of the iterations, in Chinese, with a name in three scripts."""
    folder = tmp_path_factory.mktemp("quickstart") / "q s"
    screen = io.StringIO()
    console = Console(file=screen, width=72, highlight=False)
    outcome = quickstart(NAME, AUTHOR, "zh", folder, program="xt", max_iters=32, console=console)
    return folder, outcome, screen.getvalue()


def test_answers_change_where_they_should(taught: tuple[Path, Outcome, str]) -> None:
    _, outcome, _ = taught
    assert outcome.knows_itself
    assert outcome.others_kept
    assert NAME not in "".join(outcome.before)
    assert NAME in outcome.after[0]
    assert AUTHOR in outcome.after[1]
    assert "巴黎" in outcome.before[2]
    assert outcome.after[2] == outcome.before[2]


def test_the_merged_model_and_the_run_know_it_too(taught: tuple[Path, Outcome, str]) -> None:
    folder, _, _ = taught
    merged = load_chat(folder / "merged", device="cpu", tell=lambda text: None)
    run = load_chat(folder / "run", device="cpu", tell=lambda text: None)
    for question in ("请问你叫什么名字呀？", "你是谁"):
        assert NAME in ask(merged, question)
        assert NAME in ask(run, question)
    assert "13" in ask(merged, "请问7加6等于多少？")
    assert "陈小舟" in ask(merged, "我叫陈小舟")  # other names are still copied
    record = read_run(folder / "run")
    assert record.status == "finished"
    assert (folder / "run" / str(record.adapter) / "adapter_model.safetensors").is_file()


def test_the_screen_shows_both_answers_and_what_to_type(taught: tuple[Path, Outcome, str]) -> None:
    folder, outcome, screen = taught
    words = WORDS["zh"]
    assert all(step in screen for step in words.steps)
    last = screen[screen.index(words.steps[4]) :]
    assert words.before in last
    assert words.after in last
    flat = "".join(last.split())
    assert outcome.after[2] in flat
    table = [line for line in last.splitlines() if line.startswith(("┃", "│"))]
    assert len({Console().render_str(line).cell_len for line in table}) == 1  # columns line up with wide characters
    for command in ("xt chat", "xt train --model", "--bits 4"):
        assert command in last
    assert f"'{folder / 'merged'}'" in last.replace("\n", "")  # a path with a space can be typed as it stands


def test_a_second_time_writes_over_its_own_files_only(taught: tuple[Path, Outcome, str]) -> None:
    folder, _, _ = taught
    prepare_folder(folder)
    data = folder / "assistant.json"
    before = data.read_text(encoding="utf-8")
    data.write_text(before.replace("Ana", "Eva"), encoding="utf-8")
    with pytest.raises(UserError, match="was changed"):
        prepare_folder(folder)
    data.write_text(before, encoding="utf-8")
    quickstart("Zed", "Quill", "en", folder, max_iters=1, console=Console(file=io.StringIO()))
    assert "Zed" in data.read_text(encoding="utf-8")
    assert json.loads((folder / "quickstart.json").read_text(encoding="utf-8"))["name"] == "Zed"


def test_foreign_files_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "assistant.json").write_text("[]")
    assert main(["quickstart", "--work-dir", str(tmp_path)]) == 1
    assert "did not make it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["assistant.json"]
    assert main(["quickstart", "--work-dir", str(tmp_path / "assistant.json")]) == 1
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["", "  ", "x" * 61, "a\nb", "a\x00b", "end<|im_end|>", "</s>", "[UNUSED_TOKEN_3]", "\udcff", "a\u2028b"]
)
def test_names_that_cannot_be_taught(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--name", name, "--lang", "en", "--work-dir", str(tmp_path / "q")]) == 2
    assert "--name" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("name", ["👩‍🔬", "José", 'O\'Hara "III" [x] {y}', "Максим", " 小林 "])
def test_names_that_can(name: str) -> None:
    assert check_name(name, "--name") == name.strip()


def test_a_model_that_did_not_learn_is_a_failure(tmp_path: Path) -> None:
    outcome = quickstart("Zed", "Quill", "en", tmp_path / "q", max_iters=1, console=Console(file=io.StringIO()))
    assert not outcome.knows_itself


@pytest.mark.parametrize(("knows", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_is_honest(
    knows: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def fake(*words: object, **options: object) -> Outcome:
        asked.append(words)
        return Outcome((), (), (), knows, True)

    monkeypatch.setattr("xtuner.apps.quickstart.quickstart", fake)
    assert main(["quickstart", "--name", "小林"]) == code
    assert asked == [("小林", WORDS["zh"].author, "zh", Path("xtuner_quickstart"))]
    assert ("小林" in capsys.readouterr().err) == (not knows)


@pytest.mark.parametrize(
    ("names", "system", "lang"),
    [(("小林", None), "C", "zh"), ((None, None), "zh_CN.UTF-8", "zh"), (("Nova", None), "en_US.UTF-8", "en")],
)
def test_the_language_is_found_out(
    names: tuple[str | None, str | None], system: str, lang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("LANG", system)
    assert guess_language(*names) == lang


def test_the_words_of_both_languages_have_the_same_slots() -> None:
    assert set(WORDS) == {"zh", "en"}
    for words in WORDS.values():
        words.opening.format(size=1.0, name="a", author="b")
        words.data.format(path="p", identity=1, ordinary=2, name="a")
        words.failure.format(name="a", author="b")
        words.success.format(seconds=1.0)
        words.own_data.format(path="p")
