"""InternLM2's tokenizer against what the original code computed (shared fixtures, transformers 4.41.2, fast class)."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoConfig, AutoTokenizer

from xtuner.conversation.builtin import TEMPLATES
from xtuner.conversation.jinja import to_jinja
from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer
from xtuner.model.tokenizers.internlm2 import InternLM2Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


NAMES = ("internlm2", "internlm2_tok_old")


def read_golden(name):
    return json.loads((GOLDEN / name / "golden_tokenizer.json").read_text(encoding="utf-8"))["tokenizers"]["fast"]


@pytest.fixture(params=NAMES)
def case(request):
    return GOLDEN / request.param, load_tokenizer(str(GOLDEN / request.param)), read_golden(request.param)


def test_strings_equal_the_original(case):
    _, tokenizer, golden = case
    assert len(golden["cases"]) == 38
    for row in golden["cases"]:
        text = row["text"]
        assert tokenizer(text)["input_ids"] == row["ids"], text
        assert tokenizer.encode(text, add_special_tokens=False) == row["ids_no_special"], text
        assert tokenizer.convert_ids_to_tokens(row["ids"]) == row["tokens"], text
        assert tokenizer.decode(row["ids"]) == row["decode"], text
        assert tokenizer.decode(row["ids"], skip_special_tokens=True) == row["decode_skip_special"], text
        assert tokenizer.decode(row["ids_no_special"]) == row["decode_no_special_ids"], text


def test_facts_equal_the_original(case):
    _, tokenizer, golden = case
    assert len(tokenizer) == golden["len"]
    for key in ("vocab_size", "bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "padding_side"):
        assert getattr(tokenizer, key) == golden[key], key
    ids = golden["prefix_decode"]["ids"]
    assert [tokenizer.decode(ids[:n]) for n in range(len(ids) + 1)] == golden["prefix_decode"]["decoded"]
    texts = [tokenizer.decode(row[row.index(1) + 1 :]) for row in golden["batch_pad"]["input_ids"]]
    assert dict(tokenizer(texts, padding=True)) == golden["batch_pad"]
    if "chat_template" in golden:
        messages, expected = golden["chat_template"]["messages"], golden["chat_template"]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == expected["text"]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == expected["ids"]


def test_random_texts_equal_sentencepiece(case):
    folder, tokenizer, _ = case
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    alphabet = [piece.replace("▁", " ") for piece in map(reference.id_to_piece, range(259, 605))]
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices([*alphabet, " ", "\n", "😀", "龘"], k=draw.randint(1, 12)))
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text), repr(text)


def test_auto_class_gives_ours(case):
    folder, tokenizer, _ = case
    assert type(tokenizer) is InternLM2Tokenizer
    assert type(AutoTokenizer.from_pretrained(folder)) is InternLM2Tokenizer


def test_saved_folder_opens_without_us(tmp_path):
    folders, rows = [], []
    for name in NAMES:
        golden = read_golden(name)
        folder = tmp_path / name
        load_tokenizer(str(GOLDEN / name)).save_pretrained(folder)
        AutoConfig.from_pretrained(GOLDEN / "internlm2").save_pretrained(folder)
        assert (folder / "tokenizer.model").read_bytes() == (GOLDEN / name / "tokenizer.model").read_bytes()
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert "auto_map" not in config
        own = json.loads((GOLDEN / name / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
        assert config["chat_template"] == (own or to_jinja(TEMPLATES["internlm2_chat"]))
        assert type(load_tokenizer(str(folder))) is not InternLM2Tokenizer
        folders.append(str(folder))
        rows.append(golden["cases"])
    program = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "found = []\n"
        "for folder, texts in json.load(sys.stdin):\n"
        "    tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "    ids = [tokenizer(text)['input_ids'] for text in texts]\n"
        "    found.append([ids, [tokenizer.decode(row) for row in ids]])\n"
        "assert 'xtuner' not in sys.modules\n"
        "print(json.dumps(found))\n"
    )
    given = json.dumps([[folder, [row["text"] for row in cases]] for folder, cases in zip(folders, rows, strict=True)])
    done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (ids, decoded), cases in zip(json.loads(done.stdout), rows, strict=True):
        assert ids == [row["ids"] for row in cases]
        assert decoded == [row["decode"] for row in cases]


def test_a_broken_file_is_named(tmp_path):
    folder = GOLDEN / "internlm2"
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes()[:6000])
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        load_tokenizer(str(tmp_path))
