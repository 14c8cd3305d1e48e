"""Owns what stands beside the weights: generation config, ordinary talks for the quickstart, the card."""

import json
import random
from pathlib import Path
from string import Template

from tiny_corpus.mixture import Mixture, fold, load_held_out

from tiny_model.exam import Mark
from tiny_model.tokenizer import write_json

NUM_ORDINARY = 300
ORDINARY = ("social", "world", "words", "nature", "daily", "tale", "limits", "more", "arithmetic", *["copying"] * 4)
"""Copying is easily lost when one name is learned: it comes more often than elsewhere."""
CARD = Path(__file__).parent / "card.md"


def ordinary_talks(seed: int) -> dict[str, list[list[str]]]:
    """Draw question-answer pairs of every theme but identity, per language, as the model learned them."""
    mixture = Mixture(frozenset(fold(question) for _, question, _ in load_held_out()))
    found: dict[str, list[list[str]]] = {}
    for lang in ("zh", "en"):
        rng = random.Random(f"ordinary-{seed}-{lang}")
        pairs: dict[str, list[str]] = {}
        while len(pairs) < NUM_ORDINARY:
            question, answer = mixture.draw_theme(rng, ORDINARY[len(pairs) % len(ORDINARY)], lang).turns[0]
            if "XTuner" not in answer:
                pairs.setdefault(fold(question), [question.strip(), answer])
        found[lang] = list(pairs.values())
    return found


def write_generation_config(folder: Path) -> None:
    """Name every token that ends an answer, for programs that look there."""
    size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": 1,
            "eos_token_id": [2, size - 2],
            "pad_token_id": 2,
            "max_new_tokens": 256,
            "do_sample": False,
        },
    )


def write_card(folder: Path, marks: list[Mark], num_parameters: int) -> None:
    """Write README.md from card.md, with what was measured."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wrong = [f"- {mark.question} — {mark.answer}" for mark in marks if not (mark.right and mark.ended)]
    size = sum(path.stat().st_size for path in folder.iterdir())
    text = Template(CARD.read_text(encoding="utf-8")).substitute(
        parameters=f"{num_parameters:,}",
        megabytes=f"{size / 1e6:.1f}",
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        vocab_size=config["vocab_size"],
        questions=len(marks),
        right=sum(mark.right for mark in marks),
        ended=sum(mark.ended for mark in marks),
        wrong="\n".join(wrong) or "- none",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
