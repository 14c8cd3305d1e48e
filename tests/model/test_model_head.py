"""Decoder and head together are the model, also where the head does more than a product."""

import pytest
import tiny
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from xtuner.config.model_spec import LoraSpec, ModelSpec
from xtuner.errors import UserError
from xtuner.model.head import check_head, find_head, is_one_function, run_decoder
from xtuner.model.load import load_model

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.25)),
        (GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=4.0)),
        (Gemma2ForCausalLM, Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0)),
    ],
)
def test_heads_that_do_more_than_a_product(model_class, config):
    torch.manual_seed(0)
    model = model_class(config).eval()
    ids = torch.randint(3, 90, (1, 12))
    with torch.no_grad():
        found = find_head(model)(run_decoder(model, input_ids=ids, use_cache=False))
        torch.testing.assert_close(found, model(ids).logits, atol=1e-5, rtol=1e-5)
    check_head(model)


class Odd(LlamaForCausalLM):
    """A model that does something to its logits that no config states."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * torch.linspace(0.5, 2, out.logits.shape[-1])
        return out


def test_unknown_heads_are_refused():
    check_head(LlamaForCausalLM(LlamaConfig(**SIZES)))
    with pytest.raises(UserError, match="does more than is known"):
        check_head(Odd(LlamaConfig(**SIZES)))


def test_a_tied_head_is_trained_once(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny.make_tiny_qwen2(tmp_path), dtype=torch.float32)
    head = find_head(model)
    assert head.parameters[0] is model.get_input_embeddings().weight
    check_head(model)


@pytest.mark.parametrize(
    ("lora", "alone"),
    [
        (None, True),
        ({"r": 4}, True),  # InternLM2's head has an adapter by default
        ({"r": 4, "dora": True}, False),
        ({"r": 4, "targets": ["wqkv"], "modules_to_save": ["output"]}, False),
    ],
)
def test_heads_that_need_not_be_called(tmp_path, lora, alone):
    """Under ZeRO-3 ranks meet wherever a layer is called, and each calls its head as often as it has rows to learn."""
    path = str(tiny.make_tiny_internlm2(tmp_path / "model"))
    spec = ModelSpec(path=path, lora=LoraSpec(**lora) if lora else None)
    model = load_model(spec, device="cpu", dtype=torch.float32, train=True)
    head = find_head(model)
    assert is_one_function(head.module) is alone
    called = []
    head.module.register_forward_hook(lambda *_: called.append(1))
    rows = torch.randn(3, 64)
    wanted = head.module(rows)
    torch.testing.assert_close(head(rows), wanted)
    assert len(called) == (1 if alone else 2)
