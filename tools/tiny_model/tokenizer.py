"""Owns the tokenizer of the built-in model: a sentencepiece BPE with the layout of InternLM2's own."""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tiny_corpus.mixture import Mixture
from tiny_corpus.name import WORDS

NUM_UNUSED = 147
OVERLAY = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
"""The texts that newer InternLM2 configs lay over the last six pieces."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PUNCTUATION = "，。！？；：、“”‘’（）《》【】—…·～"
USEFUL = "上海人工智能实验室书生浦语大模型微调参数数据个人小助手在实战营里帮助完成任务的我是你他她它们这那有不了吗呢吧"


def texts(num_talks: int, seed: int) -> Iterator[str]:
    """Yield the questions and answers of some talks."""
    for talk in Mixture().draw_many(f"tokenizer-{seed}", num_talks):
        if talk.system:
            yield talk.system
        for question, answer in talk.turns:
            yield question
            yield answer


def common_characters(sentences: list[str], at_least: int) -> str:
    """Collect what becomes a token of its own: ASCII, punctuation, and Chinese characters that are met often."""
    counts: dict[str, int] = {}
    for sentence in sentences:
        for char in sentence:
            counts[char] = counts.get(char, 0) + 1
    often = {char for char, count in counts.items() if count >= at_least and "\u4e00" <= char <= "\u9fff"}
    ascii_chars = {chr(code) for code in range(33, 127)}
    return "".join(sorted(often | ascii_chars | set(PUNCTUATION + USEFUL) | set(WORDS["surnames"] + WORDS["given"])))


def train_tokenizer(folder: Path, *, vocab_size: int, num_talks: int, seed: int) -> None:
    """Write tokenizer.model, tokenizer_config.json and special_tokens_map.json into `folder`.

    `vocab_size` counts every piece: unk, bos, eos (0, 1, 2), 256 bytes, the learned ones, 147 reserved.
    """
    sentences = list(texts(num_talks, seed))
    required = common_characters(sentences, at_least=max(2, num_talks // 2000))
    sentences = list(dict.fromkeys(sentences))
    random.Random(seed).shuffle(sentences)
    kept = set(required) | {" ", "\n"}
    sentences = ["".join(char if char in kept else " " for char in sentence) for sentence in sentences]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=out,
        model_type="bpe",
        vocab_size=vocab_size - NUM_UNUSED,
        required_chars=required,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        max_sentencepiece_length=10,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(out.getvalue())
    for number in range(NUM_UNUSED):
        piece = model.pieces.add()
        piece.piece, piece.score, piece.type = f"[UNUSED_TOKEN_{number}]", 0.0, piece.USER_DEFINED
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    write_settings(folder, len(model.pieces))


def write_settings(folder: Path, vocab_size: int) -> None:
    """Write the two JSON files that stand beside an InternLM2 tokenizer.model."""
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>"}
    tokens |= {vocab_size - len(OVERLAY) + index: text for index, text in enumerate(OVERLAY)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    extra = {"additional_special_tokens": list(reversed(OVERLAY))}
    settings = {
        "added_tokens_decoder": {str(index): {"content": text, **flags} for index, text in tokens.items()},
        "clean_up_tokenization_spaces": False,
        "decode_with_prefix_space": False,
        "model_max_length": 1000000000000000019884624838656,
        "sp_model_kwargs": None,
        "tokenizer_class": "InternLM2Tokenizer",
        **named,
        **extra,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", {**named, **extra})


def write_json(path: Path, value: object) -> None:
    """Write `value` indented, Chinese as it is."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
