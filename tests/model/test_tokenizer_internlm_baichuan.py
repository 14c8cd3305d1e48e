"""The tokenizers of InternLM, Baichuan and Baichuan2 against what the original code computed (transformers 4.41.2 for
InternLM, 4.33.3 for the others)."""

import pytest
from tokenizer_golden import GOLDEN, check_facts, check_random_texts, check_strings, read_golden
from transformers import AutoTokenizer

from xtuner.model.load import load_tokenizer
from xtuner.model.tokenizers.baichuan import BaichuanTokenizer
from xtuner.model.tokenizers.internlm import InternLMTokenizer


@pytest.fixture(params=["internlm_7b", "baichuan_7b", "baichuan_13b", "baichuan2_13b"])
def name(request):
    return request.param


@pytest.fixture
def tokenizer(name):
    return load_tokenizer(str(GOLDEN / name))


def test_strings_and_facts_equal_the_original(name, tokenizer):
    golden = read_golden(name)
    check_strings(tokenizer, golden)
    check_facts(tokenizer, golden)
    if "batch_pad" in golden:
        rows = golden["batch_pad"]["input_ids"]
        texts = [tokenizer.decode([i for i in row if i > 2], skip_special_tokens=True) for row in rows]
        assert dict(tokenizer(texts, padding=True)) == golden["batch_pad"]


def test_random_texts_equal_sentencepiece(name, tokenizer):
    check_random_texts(tokenizer, GOLDEN / name / "tokenizer.model", range(3, len(tokenizer)))


def test_auto_class_gives_ours_whatever_is_said_about_remote_code(name):
    kind = InternLMTokenizer if name == "internlm_7b" else BaichuanTokenizer
    for trust in (None, True, False):
        assert isinstance(AutoTokenizer.from_pretrained(GOLDEN / name, trust_remote_code=trust), kind)


def test_streams_get_no_further_spaces(name, tokenizer):
    """The original classes put spaces where special tokens are shown; who reads token by token asks for none."""
    ids = [*tokenizer.encode("hello", add_special_tokens=False), tokenizer.eos_token_id]
    assert tokenizer.decode(ids) == " hello</s>"
    assert tokenizer.decode(ids, spaces_between_special_tokens=False) == "hello</s>"


def test_tokens_that_a_user_added_come_after_the_pieces(name, tokenizer, tmp_path):
    size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.encode("a<|tool|>b", add_special_tokens=False)[1] == size
    assert len(again) == size + 1
