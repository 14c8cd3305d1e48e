"""ChatGLM3 against what the original code computed, and the forms that config.json may ask for."""

import json

import pytest
import torch
from family_golden import (
    GOLDEN,
    check_cache,
    check_packing,
    open_golden,
)
from transformers import AutoConfig, AutoModel

from xtuner.errors import UserError
from xtuner.model.families.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xtuner.model.families.place import Places
from xtuner.model.load import load_tokenizer

NAME = "chatglm3"


def make(**changes):
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "padded_vocab_size": 40, "hidden_size": 32, "ffn_hidden_size": 24, "kv_channels": 8}
    groups = {"num_attention_heads": 4, "multi_query_attention": True, "multi_query_group_num": 2}
    config = ChatGLMConfig(**{**sizes, **groups, "initializer_range": 0.3, "seq_length": 64, **changes})
    config._attn_implementation = "xtuner_packed"
    model = ChatGLMForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(std=0.3)
    return model


def rotate_pairs(states, base):
    """The original rotation of (T, H, d): pairs of neighbours in the first half of d."""
    length, _, size = states.shape
    theta = 1 / base ** (torch.arange(0, size // 2, 2) / (size // 2))
    angle = torch.polar(torch.ones(length, size // 4), torch.arange(length)[:, None] * theta)
    turned = torch.view_as_complex(states[..., : size // 2].unflatten(-1, (-1, 2)).contiguous()) * angle[:, None]
    return torch.cat((torch.view_as_real(turned).flatten(-2), states[..., size // 2 :]), dim=-1)


def reference_attention(model, hidden):
    """The attention of the first layer, step by step as the original code does it."""
    config, layer = model.config, model.transformer.encoder.layers[0].self_attention
    heads, size, length = config.num_attention_heads, config.kv_channels, hidden.shape[1]
    fused = layer.query_key_value(hidden)[0]
    if config.multi_query_attention:
        groups = config.multi_query_group_num
        parts = fused.split([heads * size, groups * size, groups * size], dim=-1)
        query, key, value = (part.view(length, -1, size) for part in parts)
    else:
        query, key, value = fused.view(length, heads, 3 * size).split(size, dim=-1)
    query, key = (rotate_pairs(states, 10000 * config.rope_ratio) for states in (query, key))
    key, value = (states.repeat_interleave(heads // states.shape[1], dim=1) for states in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) / size**0.5
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    return layer.dense(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1))[None]


FORMS = [
    {"add_qkv_bias": True},
    {"multi_query_attention": False},
    {"multi_query_attention": False, "add_bias_linear": True},
    {"multi_query_group_num": 1, "rope_ratio": 50},
    {"rmsnorm": False, "apply_residual_connection_post_layernorm": True, "post_layer_norm": False},
    {"kv_channels": 16, "num_attention_heads": 2},
]


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, tmp_path):
    model = make(**form)
    check_packing(model, 40)
    check_cache(model, 40)
    hidden = torch.randn(1, 9, 32)
    position = model.transformer.encode_positions(Places(torch.arange(9)[None], torch.float32))
    with torch.no_grad():
        found = model.transformer.encoder.layers[0].self_attention(hidden, None, position)[0]
        torch.testing.assert_close(found, reference_attention(model, hidden), atol=1e-5, rtol=1e-4)
        ids = torch.arange(3, 20)[None]
        model.save_pretrained(tmp_path)
        again = ChatGLMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert {key: raw[key] for key in form} == form
    names = {name.rpartition("layers.0.")[2] for name in model.state_dict() if name.endswith("bias")}
    assert ("self_attention.query_key_value.bias" in names) == bool({"add_qkv_bias", "add_bias_linear"} & form.keys())
    assert ("mlp.dense_h_to_4h.bias" in names) == ("add_bias_linear" in form)


def test_the_residual_may_come_from_behind_the_norm():
    ids = torch.arange(3, 20)[None]
    first = make()
    second = make(apply_residual_connection_post_layernorm=True)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert (first(ids).logits - second(ids).logits).abs().max() > 1e-2


def test_the_whole_model_behind_automodel():
    """Programs for these checkpoints ask AutoModel for the model with its head."""
    assert type(AutoModel.from_pretrained(GOLDEN / NAME)) is ChatGLMForConditionalGeneration


def test_padding_on_the_left_changes_nothing():
    model, tokenizer = open_golden(NAME)[0], load_tokenizer(str(GOLDEN / NAME))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    texts = ["hello", "你好，世界！ hello"]
    together = model.generate(**tokenizer(texts, padding=True, return_tensors="pt"), **options)
    for row, text in zip(together, texts, strict=True):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), **options)[0]
        assert row[-6:].tolist() == alone[-6:].tolist()


def test_chat_as_the_original_program_offered_it():
    model, tokenizer = open_golden(NAME)[0], load_tokenizer(str(GOLDEN / NAME))
    answer, history = model.chat(tokenizer, "你好", history=[], max_new_tokens=4, do_sample=False)
    assert history == [{"role": "user", "content": "你好"}, {"role": "assistant", "content": answer}]
    *_, (streamed, turns) = model.stream_chat(tokenizer, "你好", [], max_new_tokens=4, do_sample=False)
    assert (streamed, turns) == (answer, history)
    with pytest.raises(UserError, match="from the user"):
        model.chat(tokenizer, "{}", [], role="observation")


def test_an_answer_ends_where_another_turn_begins():
    model, tokenizer = open_golden(NAME)[0], load_tokenizer(str(GOLDEN / NAME))
    user = tokenizer.get_command("<|user|>")
    with torch.no_grad():  # the model knows one word, or says nothing of it and <unk> instead
        model.transformer.output_layer.weight.zero_()
        model.transformer.output_layer.weight[user] = 1
    options = {"max_new_tokens": 4, "do_sample": False}
    ids = [model.generate(torch.tensor([[501, 13, index]]), **options) for index in range(500, 520)]
    assert any(user in row[0, 3:-1] for row in ids)  # generate alone would go on
    for word in ("hello", "a", "b c"):
        assert model.chat(tokenizer, word, [], **options)[0] == ""


@pytest.mark.parametrize(
    ("written", "folder", "interpolated"),
    [
        ("THUDM/chatglm2-6b-32k", "m", True),
        ("THUDM/chatglm3-6b-32k", "chatglm2-runs", False),
        (None, "chatglm2-6b-32k", True),
        (None, "m", False),
    ],
)
def test_long_versions_of_the_second_generation_divide_positions(written, folder, interpolated, tmp_path):
    values = {"model_type": "chatglm", "num_attention_heads": 4, "kv_channels": 8, "rope_ratio": 16}
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "config.json").write_text(
        json.dumps({**values, "_name_or_path": written} if written else values)
    )
    config = AutoConfig.from_pretrained(tmp_path / folder)
    assert config.interpolated is interpolated
    config.save_pretrained(tmp_path / "copy")
    assert AutoConfig.from_pretrained(tmp_path / "copy").interpolated is interpolated
    with torch.device("meta"):
        decoder = ChatGLMForConditionalGeneration(config).transformer
    places = torch.arange(40)[None]
    cos = decoder.encode_positions(Places(places, torch.float32)).cos
    angles = places[0, :, None] / 16 if interpolated else places[0, :, None].float()
    base = 10000.0 if interpolated else 160000.0
    torch.testing.assert_close(cos[0, :, ::2], (angles / base ** (torch.arange(0, 4, 2) / 4)).cos())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"position_encoding_2d": True}, "first ChatGLM"),
        ({"quantization_bit": 4}, "quantised"),
        ({"pre_seq_len": 128}, "P-tuning"),
        ({"multi_query_group_num": 3}, "do not divide"),
    ],
)
def test_relatives_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        ChatGLMConfig(num_attention_heads=4, multi_query_attention=True, **changes)
