"""`xtuner chat` as it is typed: a process with a real stdin, and the words that it refuses."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import make_tiny_internlm2

from xtuner.apps import repl
from xtuner.apps.repl import PROMPT
from xtuner.cli.main import main
from xtuner.conversation.chat_model import Sampling


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_internlm2(tmp_path_factory.mktemp("model"))


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "xtuner.cli.main", "chat", *map(str, words)]


def test_a_conversation_from_a_pipe(model: Path) -> None:
    """The course: chat, two questions, RESET, EXIT. Nothing of the libraries reaches the screen."""
    done = subprocess.run(
        command(model, "--prompt-template", "internlm2_chat", "--max-new-tokens", 5),
        input="hello\nworld\n\nRESET\n\nagain\n\nEXIT\n\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = done.stdout.split(f"\n{PROMPT}")
    assert said[0] == f"Load LLM from {model}\n"
    assert len(said) == 5
    assert said[2] == "Log: History responses have been removed!\n"
    assert said[4] == "Log: Exit!\n"


def test_ctrl_c_stops_the_answer_and_then_the_program(model: Path, tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    shutil.copytree(model, endless)
    weights = load_file(endless / "model.safetensors")
    weights["output.weight"][[2, 750]] = 0  # </s> and <|im_end|> are never the likeliest
    save_file(weights, endless / "model.safetensors", metadata={"format": "pt"})
    process = subprocess.Popen(
        command(endless, "--max-new-tokens", 100_000, "--temperature", 0, "--show-special-tokens"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    text, deadline = "", time.monotonic() + 240

    def read_until(pattern: str) -> None:
        nonlocal text
        while not re.search(pattern, text, re.DOTALL):
            ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
            more = os.read(process.stdout.fileno(), 65536) if ready else b""  # type: ignore[union-attr]
            assert more, f"no more output after {text!r}"
            text += more.decode("utf-8", "replace")

    try:
        process.stdin.write(b"hello\n\n")
        process.stdin.flush()
        read_until(r">>> .{20}")  # the answer has begun
        process.send_signal(signal.SIGINT)
        read_until(r"Log: Stopped\.\n.*>>> ")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        read_until(r"Log: Exit!\n$")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_one_answer(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--prompt`: the answer alone on stdout, the rest on stderr."""
    words = [
        "chat",
        str(model),
        "--prompt",
        "hi",
        "--max-new-tokens",
        "4",
        "--temperature",
        "0",
        "--show-special-tokens",
    ]
    assert main(words) == 0
    streamed = capsys.readouterr()
    assert main([*words, "--no-streamer"]) == 0
    assert capsys.readouterr().out == streamed.out
    assert streamed.out.endswith("\n")
    assert f"Load LLM from {model}" in streamed.err


def test_the_words_of_old_versions_are_taken(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sampling] = []
    monkeypatch.setattr(repl, "ask", lambda model, prompt, sampling, **options: asked.append(sampling))
    words = "--prompt hi --max-new-tokens 2 --answer-stop-word a --command-stop-word b --stop-words c d --bot-name Mia"
    assert main(["chat", str(model), *words.split(), "--system-template", "moss_sft", "--torch-dtype", "fp32"]) == 0
    assert asked[0].stop_words == ("a", "b", "c", "d")
    assert asked[0].max_new_tokens == 2


def test_a_python_without_readline_talks_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talked: list[object] = []
    monkeypatch.setitem(sys.modules, "readline", None)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(repl, "talk", lambda model, *others, **options: talked.append(model))
    assert main(["chat", str(model)]) == 0
    assert len(talked) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lagent"], "--lagent (agents) is not part of this version yet"),
        (["--llava", "x"], "--llava (models that see pictures) is not"),
        (["--visual-encoder", "x"], "is not part of this version yet"),
        (["--image", "x.png"], "is not part of this version yet"),
        (["--with-plugins", "calculate", "solve"], "--with-plugins (tools) is not"),
        (["--system", "a", "--system-template", "coder"], "not allowed with"),
        (["--system-template", "codr"], "Did you mean coder"),
        (["--prompt-template", "internlm2_caht"], "Did you mean internlm2_chat"),
        (["--prompt", "x", "--system", "a", "--prompt-template", "minicpm"], "has no place for a system text"),
        (["--bits", "3"], "invalid choice"),
        (["--prompt", "  "], "--prompt is empty"),
        (["--prompt", "x", "--top-p", "7"], "The top-p is 7.0"),
        (["--max-new-tokens", "many"], "invalid int value"),
    ],
)
def test_wrong_words(model: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["chat", str(model), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all"], "There is no model folder"),
        (["{model}", "--adapter", "nowhere"], "There is no adapter in nowhere"),
        (["{model}/config.json"], "is a file; a model is a folder"),
    ],
)
def test_what_is_not_there(model: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["chat", *(word.format(model=model) for word in words)]) == 1
    assert message in capsys.readouterr().err
