"""Owns the quickstart: the built-in model learns who it is, with the real pipeline from data to a merged model."""

import hashlib
import json
import shlex
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xtuner.apps.identity import Lang, build_self_knowledge, write_self_knowledge
from xtuner.apps.quickstart_words import WORDS, Words
from xtuner.checkpoint.atomic import whole_file
from xtuner.checkpoint.folder import writing
from xtuner.config.spec import (
    CheckpointSpec,
    DataSpec,
    LoopSpec,
    LoraSpec,
    ModelSpec,
    OptimSpec,
    RunSpec,
    ScheduleSpec,
    SourceSpec,
)
from xtuner.conversation.chat_model import Sampling
from xtuner.conversation.message import Message
from xtuner.engine.train import train
from xtuner.errors import UserError
from xtuner.export.merge import merge_run
from xtuner.generate.load import load_chat
from xtuner.generate.local import LocalChat

MARK = "quickstart.json"
"""Tells that a folder is ours; holds the hash of the data that we wrote."""
DATA, RUN, MERGED = "assistant.json", "run", "merged"
GREEDY = Sampling(max_new_tokens=160, temperature=0)
REAL_MODEL = "internlm/internlm2-chat-1_8b"


@dataclass(frozen=True)
class Outcome:
    """Answers to the three questions, and what became of the identity."""

    questions: Sequence[str]
    before: Sequence[str]
    after: Sequence[str]
    knows_itself: bool
    others_kept: bool


def built_in_model() -> Path:
    """Return the folder of the model that comes with the package."""
    return Path(str(files("xtuner") / "assets" / "tiny"))


def quickstart(
    name: str,
    author: str,
    lang: Lang,
    work_dir: Path,
    *,
    program: str = "xtuner",
    max_iters: int | None = None,
    console: Console | None = None,
) -> Outcome:
    """Teach the built-in model `name` and `author`, showing every step on `console`.

    `program` is how this command line calls XTuner, for the commands that are suggested. `max_iters` shortens the
    training. Writes `assistant.json`, `run/` and `merged/` into `work_dir`.

    Raises:
        UserError: a folder with other people's files, a name that cannot be taught, or a failure on the way.
    """
    words, console, began = WORDS[lang], console or Console(highlight=False), time.monotonic()
    name, author = check_name(name, "--name"), check_name(author, "--author")
    prepare_folder(work_dir)
    chat = load_chat(built_in_model(), tell=_silent)
    size = sum(weight.numel() for weight in chat.model.parameters()) / 1e6
    _say(console, words.opening.format(size=size, name=name, author=author))

    _step(console, words.steps[0])
    before = [ask(chat, question) for question in words.questions]
    del chat
    _show(console, words, [before], (name, author))

    _step(console, words.steps[1])
    data = build_self_knowledge(name, author, lang)
    path = work_dir / DATA
    write_self_knowledge(path, data)
    write_mark(work_dir, name, author, lang)
    _say(
        console,
        words.data.format(path=path, identity=data.num_identity, ordinary=data.num_ordinary, name=name, author=author),
    )

    _step(console, words.steps[2])
    run = train(build_spec(work_dir, max_iters), name="quickstart")

    _step(console, words.steps[3])
    merge_run(run, work_dir / MERGED)

    _step(console, words.steps[4])
    chat = load_chat(work_dir / MERGED, tell=_silent)
    after = [ask(chat, question) for question in words.questions]
    _show(console, words, [before, after], (name, author))

    outcome = Outcome(
        words.questions, before, after, name in after[0] and author in after[1], others_kept=before[2] == after[2]
    )
    if not outcome.others_kept:
        _say(console, words.changed)
    if outcome.knows_itself:
        _say(console, words.success.format(seconds=time.monotonic() - began), "bold green")
    _suggest(console, words, work_dir, program)
    return outcome


def check_name(name: str, option: str) -> str:
    """Return a name that can stand in a sentence.

    Raises:
        UserError: it is empty, longer than 60 characters, or holds line breaks or special tokens (exit code 2).
    """
    name = name.strip()
    if not name:
        raise UserError(f"{option} is empty.", f"Type a name after {option}.", exit_code=2)
    if len(name) > 60:
        raise UserError(f"{option} has {len(name)} characters.", "Choose a name of at most 60.", exit_code=2)
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
        raise UserError(f"{option} holds line breaks or control characters.", "Type it on one line.", exit_code=2)
    for token in ("<|", "<s>", "</s>", "<unk>", "[UNUSED_TOKEN"):
        if token in name:
            raise UserError(f"{option} holds {token}, which models read as a command.", "Leave it out.", exit_code=2)
    return name


def prepare_folder(folder: Path) -> None:
    """Make the work dir, or recognise it as one of ours.

    Raises:
        UserError: it is a file, holds something else, or its data was edited since.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file.", "Choose another folder with --work-dir.")
    mark = folder / MARK
    if not folder.exists() or not any(folder.iterdir()):
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    elif not mark.is_file():
        raise UserError(
            f"{folder} is not empty, and the quickstart did not make it.", "Choose another folder with --work-dir."
        )
    elif (folder / DATA).is_file() and _hash(folder / DATA) != json.loads(mark.read_text(encoding="utf-8")).get("data"):
        raise UserError(
            f"{folder / DATA} was changed since the quickstart wrote it, and would be lost.",
            "Move it elsewhere, or choose another folder with --work-dir.",
        )


def write_mark(folder: Path, name: str, author: str, lang: Lang) -> None:
    """Note in the work dir what was taught."""
    content = {"name": name, "author": author, "lang": lang, "data": _hash(folder / DATA)}
    with whole_file(folder / MARK) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=2).encode())


def build_spec(work_dir: Path, max_iters: int | None = None) -> RunSpec:
    """Describe the training. The numbers are tuned for the built-in model: a real one wants a tenth of the rate."""
    return RunSpec(
        model=ModelSpec(path=str(built_in_model()), lora=LoraSpec(r=16, alpha=32), recompute="none"),
        data=DataSpec(
            train=[SourceSpec(path=str(work_dir / DATA))],
            template="internlm2_chat",
            max_length=1024,
            cache=str(work_dir / RUN / "cache"),
        ),
        optim=OptimSpec(lr=1e-4),
        schedule=ScheduleSpec(warmup=0.1),
        loop=LoopSpec(epochs=3, max_iters=max_iters, log_every=10),
        checkpoint=CheckpointSpec(every=None, keep=1),
        work_dir=str(work_dir / RUN),
    )


def ask(chat: LocalChat, question: str) -> str:
    """Return the likeliest answer."""
    return "".join(piece.text for piece in chat.stream([Message("user", question)], GREEDY)).strip()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _silent(text: str) -> None:
    """Say nothing: which file is loaded is no news here."""


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)  # the terminal wraps: a command that is copied stays one line


def _step(console: Console, text: str) -> None:
    console.print()
    console.rule(Text(text, "bold"), align="left")


def _show(console: Console, words: Words, answers: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    table = Table(show_lines=True)
    for head in (words.question, words.before, words.after)[: 1 + len(answers)]:
        table.add_column(Text(head), overflow="fold")
    for row in zip(words.questions, *answers, strict=True):
        cells = [Text(cell) for cell in row]
        for cell in cells:
            cell.highlight_words(names, "bold green")
        table.add_row(*cells)
    console.print(table)


def _suggest(console: Console, words: Words, work_dir: Path, program: str) -> None:
    merged, data = shlex.quote(str(work_dir / MERGED)), shlex.quote(str(work_dir / DATA))
    _say(console, f"\n{words.next_step}", "bold")
    for what, command in (
        (words.chat, f"{program} chat {merged}"),
        (words.own_data.format(path=data), f"{program} train --model {merged} --data {data}"),
        (words.real_model, f"{program} train --model {REAL_MODEL} --data {data} --bits 4"),
    ):
        _say(console, f"  # {what}", "dim")
        _say(console, f"  {command}", "bold")
