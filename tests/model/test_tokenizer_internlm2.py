"""InternLM2's tokenizer against what the original code computed (shared fixtures, transformers 4.41.2, fast class)."""

import pytest
from tokenizer_golden import GOLDEN, check_facts, check_random_texts, check_strings, read_golden
from transformers import AutoTokenizer

from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer
from xtuner.model.tokenizers.internlm2 import InternLM2Tokenizer

NAMES = ("internlm2", "internlm2_tok_old")


@pytest.fixture(params=NAMES)
def case(request):
    return GOLDEN / request.param, load_tokenizer(str(GOLDEN / request.param)), read_golden(request.param, "fast")


def test_strings_and_facts_equal_the_original(case):
    _, tokenizer, golden = case
    check_strings(tokenizer, golden)
    check_facts(tokenizer, golden)
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
    check_random_texts(tokenizer, folder / "tokenizer.model", range(259, 605))


def test_auto_class_gives_ours(case):
    folder, tokenizer, _ = case
    assert type(tokenizer) is InternLM2Tokenizer
    assert type(AutoTokenizer.from_pretrained(folder)) is InternLM2Tokenizer


def test_a_broken_file_is_named(tmp_path):
    folder = GOLDEN / "internlm2"
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes()[:6000])
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        load_tokenizer(str(tmp_path))
