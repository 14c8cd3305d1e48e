"""The built-in model: its files, its size, its layout, and a few answers."""

import json

import pytest
import torch
from safetensors import safe_open

from xtuner.apps.quickstart import ask, built_in_model
from xtuner.conversation.builtin import find_template
from xtuner.conversation.detect import detect_template
from xtuner.conversation.encode import Encoder
from xtuner.conversation.message import Message
from xtuner.generate.load import load_chat
from xtuner.generate.local import LocalChat
from xtuner.model.load import load_tokenizer

FOLDER = built_in_model()


@pytest.fixture(scope="module")
def chat() -> LocalChat:
    return load_chat(FOLDER, device="cpu", tell=lambda text: None)


def read(name: str) -> dict:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_it_is_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(sizes.values()) < 12_000_000
    assert set(sizes) == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md"),
        *("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    }


def test_weights_have_the_original_layout() -> None:
    config = read("config.json")
    assert config["model_type"] == "internlm2"
    assert config["architectures"] == ["InternLM2ForCausalLM"]
    assert "auto_map" not in config
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        kinds = {weights.get_slice(name).get_dtype() for name in names}
        rows = weights.get_slice("model.layers.0.attention.wqkv.weight").get_shape()
    assert kinds == {"BF16"}
    top = {"model.tok_embeddings.weight", "model.norm.weight", "output.weight"}
    inner = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
    layers = range(config["num_hidden_layers"])
    top |= {f"model.layers.{n}.{part}.weight" for n in layers for part in (*inner, "attention_norm", "ffn_norm")}
    assert names == top
    head = config["hidden_size"] // config["num_attention_heads"]
    assert rows == [(config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * head, config["hidden_size"]]


def test_tokenizer_has_the_layout_of_internlm2() -> None:
    size = read("config.json")["vocab_size"]
    tokenizer = load_tokenizer(str(FOLDER))
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    words = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
    assert tokenizer.convert_tokens_to_ids(words) == list(range(size - 6, size))
    assert tokenizer.convert_tokens_to_ids(["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_140]"]) == [size - 147, size - 7]
    assert len(tokenizer) == size
    for text in ("  two  spaces\n\n 1234", "龘靐 🤖🔥 Максим é\t", "请介绍一下你自己"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert len(tokenizer.encode("2024", add_special_tokens=False)) == 4  # digits stand alone
    assert detect_template(FOLDER) == "internlm2_chat"
    assert read("generation_config.json")["eos_token_id"] == [2, size - 2]


def test_chat_template_spells_as_the_training_did() -> None:
    tokenizer = load_tokenizer(str(FOLDER))
    talk = [
        Message("system", "Be kind."),
        Message("user", "Hello"),
        Message("assistant", "Hi"),
        Message("user", "你好"),
    ]
    ids, _ = Encoder(tokenizer).encode(find_template("internlm2_chat").render(talk, reply=True))
    dicts = [{"role": message.role, "content": message.text} for message in talk]
    assert list(tokenizer.apply_chat_template(dicts, add_generation_prompt=True)["input_ids"]) == ids


def test_card_is_about_this_model(chat: LocalChat) -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    parameters = sum(weight.numel() for weight in chat.model.parameters())
    assert f"{parameters:,} " in card or f"{parameters:,}," in card
    for word in ("tools/make_tiny.py", "trained on", "cannot"):
        assert word in card


# Greedy answers in float32 on a CPU; the questions are in no training conversation (tiny_corpus/text/held_out.tsv).
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("法国的首都是哪里呢？", "法国的首都是巴黎。"),
        ("可以请你介绍一下自己吗？", "演示小模型"),
        ("请问7加6等于多少？", "7加6等于13。"),
        ("“苹果”用英语怎么讲？", "“苹果”的英语是 apple。"),
        ("我叫林小舟，很高兴见到你", "很高兴认识你，林小舟！"),
        ("Please tell me who you are", "demonstration model"),
        ("What's the opposite word of big?", "The opposite of big is small."),
        ("How much is 8 plus 7?", "8 plus 7 is 15."),
        ("Hello! My name is Marlowe.", "Nice to meet you, Marlowe!"),
    ],
)
def test_answers(chat: LocalChat, question: str, answer: str) -> None:
    assert answer in ask(chat, question)


def test_follow_up_and_system_text(chat: LocalChat) -> None:
    talk = [
        Message("system", "你叫豆豆，由星河小组开发。"),
        Message("user", "你叫什么名字？"),
        Message("assistant", "我叫豆豆。"),
        Message("user", "谁开发了你？"),
    ]
    ids = chat.prompt_ids(talk)
    with torch.no_grad():
        out = chat.model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :].tolist()
    size = read("config.json")["vocab_size"]
    assert out[-1] == size - 2  # transformers alone stops at <|im_end|>, thanks to generation_config.json
    assert "星河小组" in chat.tokenizer.decode(out[:-1])
