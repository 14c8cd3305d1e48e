"""What the tokenizers of all families must do: cut text as the original did, and be saved so that all can read them."""

import json
import random
import subprocess
import sys
from pathlib import Path

import sentencepiece

from xtuner.conversation.builtin import TEMPLATES
from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Message
from xtuner.model.load import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
TALK = ["hi", "hello there", "你好，世界\n", "  two\n\nlines ", "a b", "", "again", "\nwell, 42."]
PROGRAM = """
import json, sys
from transformers import PreTrainedTokenizerFast

found = []
for folder, texts, talks in json.load(sys.stdin):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    decoded = [tokenizer.decode(row) for row in ids]
    skipped = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    said = [tokenizer.apply_chat_template(talk, return_dict=False, add_generation_prompt=True) for talk in talks]
    found.append([ids, decoded, skipped, said])
assert "xtuner" not in sys.modules
print(json.dumps(found))
"""


def read_golden(name, kind="slow"):
    return json.loads((GOLDEN / name / "golden_tokenizer.json").read_text(encoding="utf-8"))["tokenizers"][kind]


def read_config(folder):
    return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))


def check_strings(tokenizer, golden, spell=str):
    """`spell` writes a token as the golden file does."""
    assert len(golden["cases"]) == 38
    for row in golden["cases"]:
        text = row["text"]
        assert tokenizer(text)["input_ids"] == row["ids"], text
        assert tokenizer.encode(text, add_special_tokens=False) == row["ids_no_special"], text
        assert [spell(token) for token in tokenizer.convert_ids_to_tokens(row["ids"])] == row["tokens"], text
        assert tokenizer.decode(row["ids"]) == row["decode"], text
        assert tokenizer.decode(row["ids"], skip_special_tokens=True) == row["decode_skip_special"], text
        assert tokenizer.decode(row["ids_no_special"]) == row["decode_no_special_ids"], text
    ids = golden["prefix_decode"]["ids"]
    assert [tokenizer.decode(ids[:n]) for n in range(len(ids) + 1)] == golden["prefix_decode"]["decoded"]


def check_facts(tokenizer, golden):
    keys = ("vocab_size", "bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "padding_side")
    expected = {key: golden[key] for key in keys if key in golden}
    assert {key: getattr(tokenizer, key) for key in expected} == expected
    assert len(tokenizer) == golden.get("len", len(tokenizer))


def check_random_texts(tokenizer, vocab_file, ids, num_texts=1000):
    """Against the library of sentencepiece itself, with texts of the pieces `ids` and what is in no vocabulary."""
    reference = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
    alphabet = [reference.id_to_piece(index).replace("▁", " ") for index in ids]
    alphabet = [piece for piece in alphabet if not piece.startswith("<0x")]
    draw = random.Random(0)
    for _ in range(num_texts):
        text = "".join(draw.choices([*alphabet, " ", "\n", "\t", "😀", "龘"], k=draw.randint(1, 12)))
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text), repr(text)


def open_without_us(rows):
    """(folder, texts, talks) -> ids, decoded, decoded without special tokens, ids of the talks, in another process."""
    given = json.dumps([[str(folder), texts, talks] for folder, texts, talks in rows])
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def talks_of(template):
    """Talks with an open question after no, one and more turns; with a system text where the template has place."""
    roles = ("user", "assistant") * len(TALK)
    talk = [{"role": role, "content": text} for role, text in zip(roles, TALK, strict=False)]
    talks = [talk[:length] for length in (1, 3, 5, 7)]
    if TEMPLATES[template].system is not None:
        talks.append([{"role": "system", "content": "Be kind."}, *talk[:3]])
    return talks


def our_ids(folder, template, talk):
    """What training and chat make of a talk."""
    spans = TEMPLATES[template].render([Message(one["role"], one["content"]) for one in talk], reply=True)
    return Encoder(load_tokenizer(str(folder))).encode(spans)[0]
