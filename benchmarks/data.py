"""Prepares alpaca-like rows (file to packs) with XTuner and with `datasets.map` + TRL's packing, in one run.

    python benchmarks/data.py [--rows 200000] [--tokenizer byte|sentencepiece|FOLDER] [--contenders xtuner,map,trl]
                              [--rounds 3]

map: rows in batches through the fast tokenizer, then `trl.pack_dataset`: the quickest way that those libraries offer.
trl: row by row, as TRL's SFTTrainer prepares prompts and completions, with the same packing.
Every contender runs in a process of its own with two worker processes on the same two cores; imports are not timed.
Contenders take turns; of all rounds the median in seconds is shown, and the CPU seconds of that round.
Peak memory is the proportional set size of the whole process tree. Needs `trl` beside XTuner for the opponents.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_DATASETS_OFFLINE"] = "1"

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from xtuner.conversation.builtin import find_template
from xtuner.conversation.message import Message
from xtuner.conversation.template import ChatTemplate
from xtuner.conversation.word import SPLITS

PROCESSES = 2
MAX_LENGTH = 2048
TEMPLATE = "qwen_chat"
VOCABULARY = 32_000
TRAINING_ROWS = 20_000
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yield rows with alpaca's lengths; words follow Zipf's law, so that ever new ones turn up as in real texts."""
    draw, dice = np.random.default_rng(seed), random.Random(seed)
    onsets = ["b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "v", "w", "st", "tr", "pl", "ch", "sh"]
    syllables = [
        onset + rest
        for onset in onsets
        for rest in ["a", "e", "i", "o", "u", "er", "in", "an", "or", "al", "ent", "ing"]
    ]
    endings = ["", "s", "ed", "ly", "tion", "ment", ""]
    ranks = 120_000
    lexicon = [
        "".join(dice.choice(syllables) for _ in range(1 + (rank > 300) + (rank > 6000)))[: 3 if rank < 150 else None]
        + (dice.choice(endings) if rank > 150 else "")
        for rank in range(ranks)
    ]

    def words() -> Iterator[str]:
        while True:
            yield from (lexicon[rank - 1] for rank in draw.zipf(1.12, 100_000) if rank <= ranks)

    stream = words()

    def text(length: int) -> str:
        said: list[str] = []
        for _ in range(length):
            word = next(stream)
            if not said or said[-1].endswith("."):
                word = word.capitalize()
            kind = dice.random()
            if kind < 0.14:
                word += "," if kind < 0.07 else "."
            elif kind < 0.15:
                word = f'"{word}"'
            elif kind < 0.17:
                word = str(dice.randrange(1000))
            elif kind < 0.18:
                word += f"\n{dice.randrange(1, 9)}."
            said.append(word)
        return " ".join(said) + "."

    for _ in range(count):
        context = text(dice.randrange(5, 30)) if dice.random() < 0.4 else ""
        answer = text(max(3, int(dice.expovariate(1 / 45))))
        yield {"instruction": text(dice.randrange(6, 16)), "input": context, "output": answer}


def make_tokenizer(kind: str, texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of the kind of Qwen 2 ("byte") or InternLM2 ("sentencepiece")."""
    if kind == "byte":
        tokenizer = Tokenizer(models.BPE())
        pattern = next(pattern for pattern in sorted(SPLITS) if r"|\p{N}| ?" in pattern)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=MARKS, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
        bytes_ = [f"<0x{value:02X}>" for value in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=["<unk>", *MARKS, *bytes_], show_progress=False
        )
    tokenizer.train_from_iterator(texts, trainer)
    if kind != "byte":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=MARKS[2], pad_token=MARKS[0])


def spell(template: ChatTemplate, row: dict[str, str]) -> tuple[str, str]:
    """Return the prompt and the completion of a row as XTuner writes them."""
    asked = Message("user", f"{row['instruction']}\n{row['input']}")
    prompt = template.render([asked], reply=True)
    spans = template.render([asked, Message("assistant", row["output"])])
    texts = [span.text for span in spans]
    return "".join(span.text for span in prompt), "".join(texts[len(prompt) :])


def run_xtuner(file: str, tokenizer: Any, folder: str) -> tuple[int, int]:
    """Prepare with XTuner; returns tokens and packs."""
    from xtuner.config.spec import DataSpec, SourceSpec
    from xtuner.dataset.pipeline import build_dataset

    spec = DataSpec(train=[SourceSpec(path=file)], template=TEMPLATE, max_length=MAX_LENGTH, cache=folder)
    data = build_dataset(spec, tokenizer, seed=0)
    return data.report.tokens, len(data.train)


def run_map(file: str, tokenizer: Any, folder: str) -> tuple[int, int]:
    """Prepare with batches through `datasets.map`."""
    import datasets
    from trl import pack_dataset

    template = find_template(TEMPLATE)

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        spelled = [spell(template, row) for row in rows]
        prompts = tokenizer([prompt for prompt, _ in spelled], add_special_tokens=False, return_attention_mask=False)
        answers = tokenizer([answer for _, answer in spelled], add_special_tokens=False, return_attention_mask=False)
        pairs = list(zip(prompts["input_ids"], answers["input_ids"], strict=True))
        return {
            "input_ids": [prompt + answer for prompt, answer in pairs],
            "labels": [[-100] * len(prompt) + answer for prompt, answer in pairs],
        }

    rows = datasets.load_dataset("json", data_files=file, split="train", cache_dir=folder)
    encoded = rows.map(encode, batched=True, remove_columns=rows.column_names, num_proc=PROCESSES)
    return _count(pack_dataset(encoded, MAX_LENGTH, "bfd", map_kwargs={"num_proc": PROCESSES}))


def run_trl(file: str, tokenizer: Any, folder: str) -> tuple[int, int]:
    """Prepare as `SFTTrainer` does: prompt and prompt + completion row by row, labels from a mask."""
    import datasets
    from trl import pack_dataset

    template = find_template(TEMPLATE)

    def to_pair(row: dict[str, str]) -> dict[str, str]:
        prompt, completion = spell(template, row)
        return {"prompt": prompt, "completion": completion}

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(text=row["prompt"])["input_ids"]
        ids = tokenizer(text=row["prompt"] + row["completion"])["input_ids"]
        shared = next((at for at, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
        return {"input_ids": ids, "completion_mask": [0] * shared + [1] * (len(ids) - shared)}

    def label(row: dict[str, list[int]]) -> dict[str, list[int]]:
        marked = zip(row["input_ids"], row["completion_mask"], strict=True)
        return {"labels": [index if learned else -100 for index, learned in marked]}

    rows = datasets.load_dataset("json", data_files=file, split="train", cache_dir=folder)
    pairs = rows.map(to_pair, remove_columns=rows.column_names, num_proc=PROCESSES)
    encoded = pairs.map(encode, num_proc=PROCESSES).map(label, num_proc=PROCESSES)
    columns = encoded.select_columns(["input_ids", "labels"])
    return _count(pack_dataset(columns, MAX_LENGTH, "bfd", map_kwargs={"num_proc": PROCESSES}))


def _count(packed: Any) -> tuple[int, int]:
    import pyarrow.compute as pc

    return int(sum(pc.sum(pc.list_value_length(part)).as_py() for part in packed.data["input_ids"].chunks)), len(packed)


CONTENDERS = {"xtuner": run_xtuner, "map": run_map, "trl": run_trl}


def contend(name: str, file: str, tokenizer: str) -> None:
    """Run one contender in this process and print its figures."""
    loaded = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    if name == "xtuner":
        import xtuner.dataset.pipeline  # noqa: F401
    else:
        import datasets
        import trl  # noqa: F401

        datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        begun, used = time.perf_counter(), _cpu_seconds()
        tokens, packs = CONTENDERS[name](file, loaded, folder)
        wall, cpu = time.perf_counter() - begun, _cpu_seconds() - used
    print(json.dumps({"tokens": tokens, "packs": packs, "wall": wall, "cpu": cpu}))


def _cpu_seconds() -> float:
    """Of this process and of those it has started, once they have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def measure(name: str, file: Path, tokenizer: Path) -> dict[str, float]:
    """Run one contender in a process of its own; adds its peak memory in bytes."""
    command = [sys.executable, __file__, "--contend", name, str(file), str(tokenizer)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, sum(map(_memory, _tree(process.pid))))
            time.sleep(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    output, _ = process.communicate()
    thread.join()
    if process.returncode:
        sys.exit(f"{name} failed.")
    return json.loads(output.splitlines()[-1]) | {"peak": peak}


def _tree(root: int) -> list[int]:
    try:
        children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
    except OSError:
        return []
    return [root, *(pid for child in children for pid in _tree(int(child)))]


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    """Make the rows and the tokenizer, run the contenders one after another, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--tokenizer", default="byte", help="byte, sentencepiece, or the folder of a fast tokenizer")
    parser.add_argument("--contenders", default="xtuner,map,trl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contend", nargs=3, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.contend:
        contend(*words.contend)
        return
    names = words.contenders.split(",")
    if set(names) != {"xtuner"} and importlib.util.find_spec("trl") is None:
        sys.exit("trl is not installed. Type: pip install trl, or add --contenders xtuner")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:PROCESSES])
    with tempfile.TemporaryDirectory() as made:
        file, tokenizer = Path(made, "rows.jsonl"), Path(words.tokenizer)
        with file.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in make_rows(words.rows))
        if not tokenizer.is_dir():
            tokenizer = Path(made, "tokenizer")
            texts = (text for row in make_rows(TRAINING_ROWS) for text in row.values())
            make_tokenizer(words.tokenizer, texts).save_pretrained(tokenizer)
        packages = ["tokenizers", "transformers", "datasets"] + (["trl"] if names != ["xtuner"] else [])
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
        print(f"{words.rows:,} rows, {file.stat().st_size / 1e6:.0f} MB, tokenizer {words.tokenizer}; {versions}\n")
        print("| | wall s | CPU s | rows/s | tokens/s | peak memory MB | tokens | packs |")
        print("|---|---|---|---|---|---|---|---|")
        found: dict[str, dict[str, float]] = {}
        rounds = [{name: measure(name, file, tokenizer) for name in names} for _ in range(words.rounds)]
        for name in names:
            f = found[name] = sorted((once[name] for once in rounds), key=lambda run: run["wall"])[len(rounds) // 2]
            speed = f"{words.rows / f['wall']:,.0f} | {f['tokens'] / f['wall']:,.0f} | {f['peak'] / 1e6:,.0f}"
            print(
                f"| {name} | {f['wall']:.1f} | {f['cpu']:.1f} | {speed} | {f['tokens']:,} | {f['packs']:,} |",
                flush=True,
            )
    if len({f["tokens"] for f in found.values()}) > 1:
        sys.exit("The contenders made different numbers of tokens.")


if __name__ == "__main__":
    main()
