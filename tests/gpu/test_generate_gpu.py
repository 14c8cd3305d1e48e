"""Talking and merging on a CUDA card.

Type: python -m pytest -o addopts= tests/gpu
"""

import peft
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from xtuner.checkpoint.shards import ShardReader
from xtuner.conversation.chat_model import Sampling
from xtuner.conversation.message import Message
from xtuner.export.merge import merge
from xtuner.generate.load import load_chat

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
QUESTION = [Message("user", "Hello?")]


def said(chat, **sampling):
    return "".join(delta.text for delta in chat.stream(QUESTION, Sampling(max_new_tokens=16, **sampling)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.make_tiny_internlm2(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["wqkv", "w1", "output"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def test_the_same_words_as_on_the_cpu(base, adapter):
    options = {"adapter": adapter, "dtype": "fp32", "tell": print}
    assert said(load_chat(base, device="cuda", **options), temperature=0) == said(
        load_chat(base, device="cpu", **options), temperature=0
    )


def test_what_a_card_does_best(base):
    chat = load_chat(base, tell=print)
    weight = next(chat.model.parameters())
    assert weight.device.type == "cuda"
    assert weight.dtype == (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    warm = {"temperature": 1.3, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1}
    assert said(chat, **warm) == said(chat, **warm)
    assert said(chat, **warm) != said(chat, **warm, seed=1)


@pytest.mark.parametrize("bits", [4, 8])
def test_fewer_bits(base, adapter, bits):
    assert said(load_chat(base, adapter=adapter, bits=bits, tell=print))


def test_offloading(base, adapter, tmp_path):
    options = {"adapter": adapter, "dtype": "fp32", "tell": print}
    assert said(load_chat(base, offload_folder=tmp_path, **options)) == said(load_chat(base, **options))


def test_merging_there_is_merging_here(base, adapter, tmp_path):
    told = []
    merge(base, adapter, tmp_path / "there", device="cuda", tell=told.append)
    assert told[-1].startswith("Checked")
    merge(base, adapter, tmp_path / "here", device="cpu")
    there, here = ShardReader(tmp_path / "there"), ShardReader(tmp_path / "here")
    for name in here.names():
        torch.testing.assert_close(there.get(name), here.get(name), atol=1e-6, rtol=1e-5)
