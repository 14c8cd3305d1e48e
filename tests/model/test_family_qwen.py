"""Qwen (first generation) against what the original code computed, and its scaling of long texts step by step."""

import math

import pytest
import torch
from family_golden import (
    GOLDEN,
    check_cache,
    check_packing,
    make_batch,
    open_golden,
)

from xtuner.model.families.qwen import QWenConfig, QWenLMHeadModel
from xtuner.model.load import load_tokenizer
from xtuner.objective.sft import SFT

NAME = "qwen"


def make(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "kv_channels": 8, "seq_length": 8}
    config = QWenConfig(**{**sizes, **heads, "initializer_range": 0.3, **changes})
    config._attn_implementation = "xtuner_packed"
    return QWenLMHeadModel(config).eval()


def reference_attention(model, hidden, *, first=0, length=None, training=False):
    """The attention of the first layer as the original code does it for a row of which `length` tokens are real;
    positions below `first` are padding."""
    config, layer = model.config, model.transformer.h[0].attn
    total, size = hidden.shape[1], config.kv_channels
    heads = [part.view(total, -1, size) for part in layer.c_attn(hidden)[0].split(config.hidden_size, dim=-1)]
    base = config.rotary_emb_base
    if config.use_dynamic_ntk and not training:
        alpha = max(2 ** math.ceil(math.log2((length or total) / config.seq_length) + 1) - 1, 1)
        base = base * alpha ** (size / (size - 2))
    angle = torch.arange(total)[:, None] / base ** (torch.arange(0, size, 2) / size)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def rotate(states):
        turned = torch.complex(*states.chunk(2, dim=-1)) * turn
        return torch.cat((turned.real, turned.imag), dim=-1)

    query, key, value = rotate(heads[0]), rotate(heads[1]), heads[2]
    if config.use_logn_attn and not training:
        places = range(1, total + 1)
        query = query * torch.tensor([max(math.log(place, config.seq_length), 1) for place in places])[:, None, None]
    scores = torch.einsum("qhd,khd->hqk", query, key) / size**0.5
    seen = torch.ones(total, total).tril().bool() & (torch.arange(total) >= first)
    weights = scores.masked_fill(~seen, -1e30).softmax(-1)
    return layer.c_proj(torch.einsum("hqk,khd->qhd", weights, value).flatten(1))[None]


SCALINGS = [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize(("ntk", "logn"), SCALINGS)
@pytest.mark.parametrize("length", [8, 9, 16, 17, 30])
@pytest.mark.parametrize("training", [False, True])
def test_long_texts_are_scaled_in_evaluation_only(ntk, logn, length, training):
    model = make(use_dynamic_ntk=ntk, use_logn_attn=logn, num_hidden_layers=1).train(training)
    ids = torch.randint(40, (1, length))
    caught = {}
    attention = model.transformer.h[0].attn
    attention.register_forward_hook(
        lambda module, args, out: caught.update(given=args[0], made=out[0]), always_call=True
    )
    with torch.no_grad():
        model(ids)
        expected = reference_attention(model, caught["given"], training=training)
    torch.testing.assert_close(caught["made"], expected, atol=1e-5, rtol=1e-4)


def test_padding_does_not_count_as_length():
    """As in the original code, the base follows the real tokens and the stretch the place in the row."""
    model = make(num_hidden_layers=1)
    ids = torch.randint(40, (2, 20))
    mask = torch.ones_like(ids)
    mask[1, :13] = 0
    caught = {}
    model.transformer.h[0].attn.register_forward_hook(
        lambda module, args, out: caught.update(given=args[0], made=out[0])
    )
    with torch.no_grad():
        model(ids, attention_mask=mask)
        expected = reference_attention(model, caught["given"][1:], first=13, length=7)
    torch.testing.assert_close(caught["made"][1:, 13:], expected[:, 13:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("ntk", "logn"), SCALINGS)
def test_segments_and_caches_are_scaled_by_themselves(ntk, logn):
    model = make(use_dynamic_ntk=ntk, use_logn_attn=logn)
    check_packing(model, 40, (4, 20, 9, 33))
    # with more than one layer what is behind the cache has seen a shorter sequence, which ntk turns less
    check_cache(make(use_dynamic_ntk=ntk, use_logn_attn=logn, num_hidden_layers=1 if ntk else 2), 40)
    check_cache(model, 40, length=32, cuts=(18, 19, 30), crop=False)


def test_nothing_is_left_behind_by_a_long_text():
    model = make()
    short, long = torch.randint(40, (1, 6)), torch.randint(40, (1, 40))
    with torch.no_grad():
        before = model(short).logits
        model(long)
        assert torch.equal(model(short).logits, before)


def test_a_packed_row_trains_without_scaling():
    """The gradient of long samples in one row is that of each alone."""
    rows = [torch.randint(40, (length,)) for length in (20, 9)]
    model = make().train()
    total = SFT()(model, make_batch(rows)).total
    alone = sum(SFT()(model, make_batch([row])).total for row in rows)
    torch.testing.assert_close(total, alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"no_bias": False}, {"rotary_pct": 0.5}, {"tie_word_embeddings": True}])
def test_forms(changes, tmp_path):
    model = make(**changes)
    names = set(model.state_dict())
    assert ("transformer.h.0.mlp.w1.bias" in names) == ("no_bias" in changes)
    assert "transformer.h.0.attn.c_attn.bias" in names
    assert ("transformer.h.0.attn.c_proj.bias" in names) == ("no_bias" in changes)
    ids = torch.arange(3, 20)[None]
    model.save_pretrained(tmp_path)
    again = QWenLMHeadModel.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    check_packing(model, 40, (4, 20, 9))


def test_chat_as_the_original_program_offered_it():
    model, tokenizer = open_golden(NAME)[0], load_tokenizer(str(GOLDEN / NAME))
    answer, history = model.chat(tokenizer, "你好", history=None, max_new_tokens=4, do_sample=False)
    assert history == [("你好", answer)]
    *_, last = model.chat_stream(tokenizer, "你好", None, max_new_tokens=4, do_sample=False)
    assert last == answer


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="kv_channels"):
        QWenConfig(kv_channels=64)
