"""Ids and labels equal those of 0.1.21; a chat prompt is a token prefix of the training sample."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_conversation_template import TURNS, to_conversation
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from xtuner.conversation.builtin import TEMPLATES, find_template
from xtuner.conversation.encode import CACHED_TEXTS, Encoder
from xtuner.conversation.message import Message, Span
from xtuner.errors import UserError
from xtuner.model.load import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = ("internlm2", "internlm2_tok_old", "llama_tokenizer")
COMBOS = [
    combo
    for combo in json.loads((GOLDEN / "xtuner_data" / "expected_encode.json").read_text(encoding="utf-8"))["combos"]
    if combo["tokenizer"] in FOLDERS
]


class QwenLikeTokenizer(PreTrainedTokenizerFast):
    """A byte-level tokenizer without BOS, as Qwen's; its name is what makes the encoder leave BOS out."""


def qwen_like() -> QwenLikeTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [turn["output"] or "" for turns in TURNS for turn in turns]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return QwenLikeTokenizer(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>")


class PlainTokenizer:
    """The least an encoder needs: no batch, no vocabulary."""

    bos_token_id, eos_token_id = 1, None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return [ord(character) + 2 for character in text]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    loaded: dict[str, Any] = {name: load_tokenizer(str(GOLDEN / name)) for name in FOLDERS}
    return loaded | {"qwen_like": qwen_like()}


@pytest.mark.parametrize("combo", COMBOS, ids=lambda combo: f"{combo['tokenizer']}-{combo['template']}")
def test_ids_and_labels_equal_the_golden_ones(combo: dict[str, Any], tokenizers: dict[str, Any]) -> None:
    encoder = Encoder(tokenizers[combo["tokenizer"]])
    assert (encoder.bos, encoder.eos) == (combo["bos"], combo["eos"])
    for turns, expected in zip(TURNS, combo["encoded"], strict=True):
        if expected is None:
            continue
        talk = to_conversation(turns)
        if combo["template"] is None:  # there 0.1.x left system texts out; we say them
            talk = [message for message in talk if message.role != "system"]
        ids, trained = encoder.encode(find_template(combo["template"] or "plain").render(talk))
        assert ids == expected["input_ids"]
        labels = [index if train else -100 for index, train in zip(ids, trained, strict=True)]
        assert labels == expected["labels"]


def test_every_golden_pair_with_our_tokenizers_is_tested() -> None:
    assert len(COMBOS) == 12


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("tokenizer", [*FOLDERS, "qwen_like"])
def test_the_chat_prompt_is_a_token_prefix_of_the_sample(name: str, tokenizer: str, tokenizers: dict[str, Any]) -> None:
    encoder, template = Encoder(tokenizers[tokenizer]), TEMPLATES[name]
    checked = 0
    for turns in TURNS:
        talk = to_conversation(turns)
        if template.system is None:
            talk = [message for message in talk if message.role != "system"]
        ids, trained = encoder.encode(template.render(talk))
        for index, message in enumerate(talk):
            if message.role == "assistant":
                prompt, _ = encoder.encode(template.render(talk[:index], reply=True))
                assert ids[: len(prompt)] == prompt
                if message.text:
                    assert trained[len(prompt)] is message.train
                checked += 1
    assert checked == sum(map(len, TURNS))


def test_qwen_has_no_bos(tokenizers: dict[str, Any]) -> None:
    encoder = Encoder(tokenizers["qwen_like"])
    assert encoder.bos == []
    ids, _ = encoder.encode(find_template("qwen_chat").render([Message("user", "Hi"), Message("assistant", "ok")]))
    assert tokenizers["qwen_like"].decode(ids).startswith("<|im_start|>user\nHi<|im_end|>\n")


def test_any_object_that_encodes_will_do() -> None:
    encoder = Encoder(PlainTokenizer())
    ids, trained = encoder.encode([Span(mark="bos"), Span("ab"), Span("c", train=True)])
    assert (ids, trained) == ([1, 99, 100, 101], [False, False, False, True])
    with pytest.raises(UserError, match="reads text only"):
        encoder.encode([Span("a", images=("cat.png",))])
    with pytest.raises(UserError, match="no end-of-text token"):
        encoder.encode([Span("a"), Span(mark="eos", train=True)])


def test_chatglm_opens_with_gmask_and_sop() -> None:
    class ChatGLMTokenizer(PlainTokenizer):
        def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
            return [{"[gMASK]": 64790, "sop": 64792}[token] for token in tokens]

    assert Encoder(ChatGLMTokenizer()).bos == [64790, 64792]  # the ids that 0.1.x had hard-coded


def test_batches_give_what_single_texts_give(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["internlm2"]
    encoder = Encoder(tokenizer)
    rows = [[Span(f"text {number % 700}"), Span("\n")] for number in range(CACHED_TEXTS + 5)]
    for start in range(0, len(rows), 5000):
        encoder.encode_many(rows[start : start + 5000])
    for pieces, row in zip(encoder.encode_many(rows[-20:]), rows[-20:], strict=True):
        expected = [tokenizer.encode(span.text, add_special_tokens=False) for span in row]
        assert [list(memoryview(ids).cast("i")) for ids, _ in pieces] == expected


def test_settings_left_on_a_tokenizer_do_not_cut(tokenizers: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(str(GOLDEN / "internlm2"))
    encoder = Encoder(tokenizer)
    tokenizer(["a b c d"], truncation=True, max_length=2)
    spans = [Span("one two three four five")]
    assert encoder.encode(spans) == Encoder(tokenizers["internlm2"]).encode(spans)


def test_fingerprints_tell_tokenizers_apart(tokenizers: dict[str, Any]) -> None:
    prints = {name: Encoder(tokenizer).fingerprint() for name, tokenizer in tokenizers.items()}
    assert len(set(prints.values())) == len(prints)
    assert Encoder(load_tokenizer(str(GOLDEN / "internlm2"))).fingerprint() == prints["internlm2"]
