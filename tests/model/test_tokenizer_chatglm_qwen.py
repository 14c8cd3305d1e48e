"""The tokenizers of ChatGLM3 and Qwen against what the original code computed (shared fixtures)."""

import base64
import json
import random
import shutil
from itertools import pairwise
from pathlib import Path
from unicodedata import normalize

import pytest
import sentencepiece
from tokenizer_golden import GOLDEN, check_facts, check_random_texts, check_strings, read_golden
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from xtuner.conversation.builtin import find_template
from xtuner.conversation.detect import detect_template
from xtuner.conversation.encode import Encoder
from xtuner.conversation.jinja import to_jinja
from xtuner.conversation.message import Message
from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer
from xtuner.model.tokenizers.chatglm import ChatGLMTokenizer
from xtuner.model.tokenizers.qwen import PATTERN, QWenTokenizer, build_tokenizer, read_ranks

CLASSES = {"chatglm3": ChatGLMTokenizer, "qwen": QWenTokenizer}
TURNS = json.loads((GOLDEN / "xtuner_data" / "conversations.json").read_text(encoding="utf-8"))
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


def to_conversation(turns):
    messages = []
    for turn in turns:
        messages += [Message("system", turn["system"])] if turn.get("system") else []
        messages.append(Message("user", turn.get("input") or ""))
        messages.append(Message("assistant", turn["output"], train=turn.get("output_with_loss", True)))
    return messages


def spell(token):
    """A byte-level token as the golden file writes it."""
    return token if token.startswith("<|") else {"hex": bytes(BYTES[character] for character in token).hex()}


def open_tokenizer(name):
    return CLASSES[name].from_pretrained(GOLDEN / name)


@pytest.fixture(params=CLASSES)
def case(request):
    return request.param, open_tokenizer(request.param), read_golden(request.param)


def test_strings_and_facts_equal_the_original(case):
    name, tokenizer, golden = case
    assert type(tokenizer) is CLASSES[name]
    check_strings(tokenizer, golden, str if name == "chatglm3" else spell)
    told = {key: value for key, value in golden.items() if key not in ("len", "unk_token_id")}  # which ChatGLM's denies
    check_facts(tokenizer, told)


def test_auto_class_gives_ours(case):
    name, _, _ = case
    assert type(AutoTokenizer.from_pretrained(GOLDEN / name)) is CLASSES[name]


def test_commands_and_padding_of_chatglm():
    tokenizer, golden = open_tokenizer("chatglm3"), read_golden("chatglm3")
    assert {word: tokenizer.get_command(word) for word in golden["get_command"]} == golden["get_command"]
    talk = golden["build_chat_input"]
    assert tokenizer.build_chat_input(talk["query"], talk["history"])["input_ids"].tolist() == [talk["input_ids"]]
    expected = golden["batch_pad"]
    texts = [tokenizer.decode([index for index in row if index not in (0, 641, 643)]) for row in expected["input_ids"]]
    assert dict(tokenizer(texts, padding=True)) == expected
    assert {**tokenizer.pad([tokenizer(text) for text in texts])} == expected


def test_special_tokens_of_chatglm_are_text_unless_asked_for():
    text = "philosophy <|user|>\n[gMASK]sop</s>"
    plain = open_tokenizer("chatglm3")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / "chatglm3" / "tokenizer.model"))
    assert plain.encode(text, add_special_tokens=False) == reference.encode(text)
    asked = load_tokenizer(str(GOLDEN / "chatglm3"), options={"encode_special_tokens": True})
    assert asked.encode("philosophy <|user|>\n hi", add_special_tokens=False) == [
        *reference.encode("philosophy "),
        646,
        *reference.encode("\n hi"),
    ]


def test_roles_of_a_template_are_tokens_in_conversations(tmp_path):
    talk = [Message("system", "s"), Message("user", "hi"), Message("assistant", "ho"), Message("user", "you")]
    messages = [{"role": message.role, "content": message.text} for message in talk]
    spans = find_template("chatglm3").render(talk, reply=True)
    plain, ready = open_tokenizer("chatglm3"), load_tokenizer(str(GOLDEN / "chatglm3"))
    ids = Encoder(ready).encode(spans)[0]
    roles = [plain.get_command(f"<|{role}|>") for role in ("system", "user", "assistant")]
    assert [index for index in ids if index in roles] == [*roles, *roles[1:]]
    plain.save_pretrained(tmp_path)
    assert Encoder(load_tokenizer(str(tmp_path))).encode(spans)[0] == ids
    template = to_jinja(find_template("chatglm3"))
    assert plain.apply_chat_template(messages, chat_template=template, return_dict=False) == ids
    assert plain.encode("<|user|>", add_special_tokens=False) != roles[1:2]


def test_saved_folders_pad_on_the_same_side(tmp_path):
    load_tokenizer(str(GOLDEN / "chatglm3")).save_pretrained(tmp_path)
    found = PreTrainedTokenizerFast.from_pretrained(tmp_path)(["hello", "hello hello"], padding=True)
    assert [row[0] for row in found["attention_mask"]] == [0, 1]


def test_the_second_generation_has_no_roles(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "chatglm3", tmp_path / "chatglm2-6b"))
    tokenizer = load_tokenizer(str(folder))
    assert (len(tokenizer), tokenizer.default_template()) == (645, "chatglm2")
    assert detect_template(folder) == "chatglm2"


def test_random_texts_equal_sentencepiece():
    vocabulary = GOLDEN / "chatglm3" / "tokenizer.model"
    check_random_texts(open_tokenizer("chatglm3"), vocabulary, range(259, 640), num_texts=2000)


def join_by_rank(piece, ranks):
    """What tiktoken does with one piece: a whole token as it is, else the lowest-ranked neighbours first."""
    parts = [piece[place : place + 1] for place in range(len(piece))] if piece not in ranks else [piece]
    while len(parts) > 1:
        found = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        if min(found) == len(ranks):
            break
        place = found.index(min(found))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [ranks[part] for part in parts]


def check_against_ranks(tokenizer, ranks, texts):
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    for text in texts:
        pieces = [piece.encode() for piece, _ in split.pre_tokenize_str(normalize("NFC", text))]
        assert tokenizer.encode(text).ids == [index for piece in pieces for index in join_by_rank(piece, ranks)], text


def test_random_texts_equal_the_ranks():
    ranks = read_ranks(GOLDEN / "qwen" / "qwen.tiktoken")
    tokenizer = load_tokenizer(str(GOLDEN / "qwen")).backend_tokenizer
    alphabet = [token.decode(errors="ignore") for token in ranks]
    draw = random.Random(0)
    texts = ["".join(draw.choices([*alphabet, " ", "\n", "e\u0301"], k=draw.randint(1, 12))) for _ in range(2000)]
    check_against_ranks(tokenizer, ranks, texts)


def test_words_put_into_the_vocabulary_by_hand_are_joined_as_by_the_ranks():
    """Tokens that no tokens of lower ranks make: several of their splits may be joined, or only the whole word is."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"abcd", b"cdef", b"ab", b"cd", b"ef", b"aaa", b"aa", b"bca", b"ca", b"bc", b"xyz", b"aaaaa"]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    draw = random.Random(1)
    texts = ["".join(draw.choices("aabcdefxyz", k=draw.randint(1, 14))) for _ in range(3000)]
    check_against_ranks(build_tokenizer(ranks), ranks, texts)


def test_special_tokens_of_qwen_are_found_in_the_normalised_text():
    tokenizer = load_tokenizer(str(GOLDEN / "qwen"))
    assert tokenizer.encode("a<|im_end|>b") == [97, 602, 98]
    assert 602 not in tokenizer.encode("a<|im_end|>\u0338b")  # NFC makes the mark and the > one character
    named = load_tokenizer(str(GOLDEN / "qwen"), options={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    assert (named.eos_token_id, named.pad_token_id, len(named)) == (602, 600, 808)


COMBOS = [
    combo
    for combo in json.loads((GOLDEN / "xtuner_data" / "expected_encode.json").read_text(encoding="utf-8"))["combos"]
    if combo["tokenizer"] in ("chatglm2", "chatglm3", "qwen")
]


@pytest.mark.parametrize("combo", COMBOS, ids=lambda combo: f"{combo['tokenizer']}-{combo['template']}")
@pytest.mark.parametrize("saved", [False, True])
def test_samples_equal_those_of_0_1_21(combo, saved, tmp_path):
    """ChatGLM's beginning is hard-coded there with the ids of the real vocabulary."""
    folder = GOLDEN / ("qwen" if combo["tokenizer"] == "qwen" else "chatglm3")
    tokenizer = AutoTokenizer.from_pretrained(folder, **combo["tokenizer_kwargs"])
    if saved:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoder = Encoder(tokenizer)
    begin = {64790: 641, 64792: 643} if combo["tokenizer"] != "qwen" else {}
    for turns, expected in zip(TURNS, combo["encoded"], strict=True):
        if expected is None:
            continue
        ids, trained = encoder.encode(find_template(combo["template"]).render(to_conversation(turns)))
        assert ids == [begin.get(index, index) for index in expected["input_ids"]]
        labels = [index if train else -100 for index, train in zip(ids, trained, strict=True)]
        assert labels == [begin.get(index, index) for index in expected["labels"]]


@pytest.mark.parametrize("name", CLASSES)
def test_broken_files_are_named(name, tmp_path):
    file = CLASSES[name].VOCABULARY
    for part in ("config.json", "tokenizer_config.json"):
        shutil.copyfile(GOLDEN / name / part, tmp_path / part)
    with pytest.raises(UserError, match=file):
        load_tokenizer(str(tmp_path))
    whole = (GOLDEN / name / file).read_bytes()
    for broken in (whole[: len(whole) // 2], b"", base64.b64encode(whole), b"a b c\n"):
        (tmp_path / file).write_bytes(broken)
        with pytest.raises(UserError, match=file):
            load_tokenizer(str(tmp_path))


def test_another_tokenizer_is_refused(tmp_path):
    shutil.copytree(GOLDEN / "chatglm3", tmp_path, dirs_exist_ok=True)
    shutil.copyfile(GOLDEN / "internlm2" / "tokenizer.model", tmp_path / "tokenizer.model")
    with pytest.raises(UserError, match="not the tokenizer of ChatGLM"):
        load_tokenizer(str(tmp_path))


def test_qwen_chat_models_are_known_by_their_generation_config(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen"}')
    for chat_format, template in (("raw", None), ("chatml", "qwen_chat")):
        (folder / "generation_config.json").write_text(json.dumps({"chat_format": chat_format}))
        assert detect_template(folder) == template


@pytest.mark.parametrize("options", [{}, {"encode_special_tokens": False}])
def test_tokens_that_a_user_names_come_after_those_of_chatglm(options, tmp_path):
    tokenizer = load_tokenizer(
        str(GOLDEN / "chatglm3"), options={**options, "additional_special_tokens": ["<|tool|>", "sop"]}
    )
    assert (len(tokenizer), tokenizer.convert_tokens_to_ids("<|tool|>")) == (650, 649)
    assert (649 in tokenizer.encode("a<|tool|>b")) == (not options)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert (len(again), again.convert_tokens_to_ids("<|tool|>")) == (650, 649)
