"""The tokenizers of InternLM, Baichuan and Baichuan2 against what the original code computed (transformers 4.41.2 for
InternLM, 4.33.3 for the others)."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoConfig, AutoTokenizer

from xtuner.conversation.builtin import TEMPLATES
from xtuner.conversation.detect import detect_template
from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Message
from xtuner.model.load import load_tokenizer
from xtuner.model.tokenizers.baichuan import BaichuanTokenizer
from xtuner.model.tokenizers.internlm import InternLMTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
TEMPLATE_OF = {
    "internlm_7b": "internlm_chat",
    "baichuan_7b": "baichuan_chat",
    "baichuan_13b": "baichuan_chat",
    "baichuan2_13b": "baichuan2_chat",
}


def read_golden(name):
    return json.loads((GOLDEN / name / "golden_tokenizer.json").read_text(encoding="utf-8"))["tokenizers"]["slow"]


@pytest.fixture(params=TEMPLATE_OF)
def name(request):
    return request.param


@pytest.fixture
def tokenizer(name):
    return load_tokenizer(str(GOLDEN / name))


def test_strings_equal_the_original(name, tokenizer):
    golden = read_golden(name)
    assert len(golden["cases"]) == 38
    for row in golden["cases"]:
        text = row["text"]
        assert tokenizer(text)["input_ids"] == row["ids"], text
        assert tokenizer.encode(text, add_special_tokens=False) == row["ids_no_special"], text
        assert tokenizer.convert_ids_to_tokens(row["ids"]) == row["tokens"], text
        assert tokenizer.decode(row["ids"]) == row["decode"], text
        assert tokenizer.decode(row["ids"], skip_special_tokens=True) == row["decode_skip_special"], text
        assert tokenizer.decode(row["ids_no_special"]) == row["decode_no_special_ids"], text


def test_facts_equal_the_original(name, tokenizer):
    golden = read_golden(name)
    assert len(tokenizer) == golden["len"]
    for key in ("vocab_size", "bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "padding_side"):
        assert getattr(tokenizer, key) == golden[key], key
    ids = golden["prefix_decode"]["ids"]
    assert [tokenizer.decode(ids[:n]) for n in range(len(ids) + 1)] == golden["prefix_decode"]["decoded"]
    if "batch_pad" in golden:
        rows = golden["batch_pad"]["input_ids"]
        texts = [tokenizer.decode([i for i in row if i > 2], skip_special_tokens=True) for row in rows]
        assert dict(tokenizer(texts, padding=True)) == golden["batch_pad"]


def test_random_texts_equal_sentencepiece(name, tokenizer):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / name / "tokenizer.model"))
    alphabet = [reference.id_to_piece(index).replace("▁", " ") for index in range(3, len(tokenizer))]
    alphabet = [piece for piece in alphabet if not piece.startswith("<0x")]
    draw = random.Random(0)
    for _ in range(1000):
        text = "".join(draw.choices([*alphabet, " ", "\n", "\t", "😀", "龘"], k=draw.randint(1, 12)))
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text), repr(text)


def test_auto_class_gives_ours_whatever_is_said_about_remote_code(name):
    kind = InternLMTokenizer if name == "internlm_7b" else BaichuanTokenizer
    for trust in (None, True, False):
        assert isinstance(AutoTokenizer.from_pretrained(GOLDEN / name, trust_remote_code=trust), kind)


def test_streams_get_no_further_spaces(name, tokenizer):
    """The original classes put spaces where special tokens are shown; who reads token by token asks for none."""
    ids = [*tokenizer.encode("hello", add_special_tokens=False), tokenizer.eos_token_id]
    assert tokenizer.decode(ids) == " hello</s>"
    assert tokenizer.decode(ids, spaces_between_special_tokens=False) == "hello</s>"


def test_saved_folders_open_without_us(tmp_path):
    rows = {}
    for name, template in TEMPLATE_OF.items():
        folder = tmp_path / name
        load_tokenizer(str(GOLDEN / name)).save_pretrained(folder)
        assert (folder / "tokenizer.model").read_bytes() == (GOLDEN / name / "tokenizer.model").read_bytes()
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert "auto_map" not in config
        assert detect_template(folder) == template
        assert config["chat_template"]
        AutoConfig.from_pretrained(GOLDEN / name).save_pretrained(folder)
        ours = load_tokenizer(str(folder))
        assert not isinstance(ours, InternLMTokenizer | BaichuanTokenizer)
        rows[str(folder)] = read_golden(name)["cases"]
    program = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "found = []\n"
        "for folder, texts in json.load(sys.stdin):\n"
        "    tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "    ids = [tokenizer(text)['input_ids'] for text in texts]\n"
        "    words = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]\n"
        "    said = tokenizer.apply_chat_template([{'role': 'user', 'content': 'hi'}], tokenize=False)\n"
        "    found.append([ids, words, tokenizer.encode(said, add_special_tokens=False)])\n"
        "assert 'xtuner' not in sys.modules\n"
        "print(json.dumps(found))\n"
    )
    given = json.dumps([[folder, [row["text"] for row in cases]] for folder, cases in rows.items()])
    done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (ids, words, said), (name, template), cases in zip(
        json.loads(done.stdout), TEMPLATE_OF.items(), rows.values(), strict=True
    ):
        assert ids == [row["ids"] for row in cases]
        assert words == [row["decode_skip_special"] for row in cases]
        spans = TEMPLATES[template].render([Message("user", "hi")], reply=True)
        assert said == Encoder(load_tokenizer(str(GOLDEN / name))).encode(spans)[0]


def test_tokens_that_a_user_added_come_after_the_pieces(name, tokenizer, tmp_path):
    size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.encode("a<|tool|>b", add_special_tokens=False)[1] == size
    assert len(again) == size + 1
