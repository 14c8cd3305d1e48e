"""What makes small cards possible, on a CUDA card: rows read from pinned memory, a 4-bit head, the FP8 gate.

Type: python -m pytest -o addopts= tests/gpu/test_small_card_gpu.py
"""

import gc

import pytest
import tiny
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch.nn import functional

from xtuner.config.spec import LoraSpec, ModelSpec, QuantSpec
from xtuner.conversation.chat_model import Sampling
from xtuner.conversation.message import Message
from xtuner.conversation.template import ChatTemplate
from xtuner.dataset.batch import Batch
from xtuner.generate.local import LocalChat
from xtuner.model.fp8_linear import to_fp8
from xtuner.model.head import base_model, find_head
from xtuner.model.load import load_model, load_tokenizer
from xtuner.model.rounding import measure_rounding
from xtuner.objective.sft import SFT
from xtuner.ops.host_row import host_copy, host_rows
from xtuner.ops.linear_cross_entropy import linear_cross_entropy, reference_linear_cross_entropy
from xtuner.ops.packed4bit import Packed4bit
from xtuner.ops.packed_head import PackedHead
from xtuner.ops.packing import Packing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
LENGTHS = [60, 3, 129]
NF4 = QuantSpec(bits=4)
SMALL = {"quant": QuantSpec(bits=4, head=True), "host_embedding": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [7, 1024, 4100])
def test_a_card_reads_rows_from_the_host(dtype, width):
    matrix = torch.randn(1000, width, dtype=dtype)
    card = torch.device("cuda", torch.cuda.current_device())
    host = host_copy(matrix, card)
    assert host.is_pinned()
    for shape in [(1, 300), (5,), (2, 3, 4), (0,)]:
        ids = torch.randint(1000, shape)
        expected = functional.embedding(ids, matrix)
        for given in (ids, ids.cuda()):
            found = host_rows(host, given, card)
            assert found.device == card
            assert torch.equal(found.cpu(), expected), shape


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("slab", [2**26, 256 * 1024, 1])
def test_slabs_of_a_4bit_head(slab, double):
    torch.manual_seed(0)
    weight = torch.randn(5000, 512, device="cuda") * 0.1
    data, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    full = dequantize_4bit(data, state)
    hidden = torch.randn(200, 512, device="cuda", requires_grad=True)
    labels = torch.randint(5000, (200,), device="cuda")
    loss = linear_cross_entropy(hidden, PackedHead(Packed4bit.of(data, state), slab=slab), labels, 64)
    expected = reference_linear_cross_entropy(hidden, lambda rows: rows @ full.t(), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-2)
    [grad], [other] = torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, hidden)
    assert (grad - other).norm() < 2e-3 * other.norm()


def test_a_head_is_never_in_full():
    width, vocabulary = 512, 100_000
    data, state = quantize_4bit(torch.randn(vocabulary, width, device="cuda").bfloat16(), quant_type="nf4")
    hidden = torch.randn(64, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(vocabulary, (64,), device="cuda")
    head = PackedHead(Packed4bit.of(data, state), slab=2**22)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_cross_entropy(hidden, head, labels, 16).backward()
    held = torch.cuda.max_memory_allocated() - before
    logits = 2 * 16 * vocabulary * 2  # of a chunk, and their gradient
    assert held < 2 * (2**22) * 2 + logits * 2 + 2**23 < vocabulary * width * 2


def load(folder, **form):
    torch.manual_seed(0)
    form = {"lora": LoraSpec(r=8), "recompute": "none", "compile": False, "quant": NF4, **form}
    return load_model(ModelSpec(path=str(folder), **form), device="cuda", dtype=torch.bfloat16, train=True)


def trajectory(model, steps=50):
    """Return the losses of `steps` of AdamW on rows of changing lengths."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    objective, losses = SFT(), []
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        lengths = LENGTHS if step % 3 else [192]
        batch = make_batch(lengths, draw)
        with torch.autocast("cuda", torch.bfloat16):
            loss = objective(model, batch)
        (loss.total / loss.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.total.detach() / loss.weight))
    return torch.tensor(losses)


def make_batch(lengths, draw):
    ids = torch.randint(3, 90, (1, sum(lengths)), generator=draw).cuda()
    positions = torch.cat([torch.arange(length) for length in lengths])[None].cuda()
    return Batch(ids, ids.roll(-1), positions, Packing.from_lengths(lengths).to("cuda"))


def test_fifty_iterations_with_the_embedding_on_the_host_are_the_same(tmp_path):
    folder = tiny.make_tiny_llama(tmp_path)
    plain = trajectory(load(folder))
    assert plain[-5:].mean() < plain[:5].mean() - 0.05
    for form in ({}, {"recompute": "layers"}, {"compile": True}):
        model = load(folder, host_embedding=True, **form)
        assert model.get_input_embeddings().weight.is_pinned()
        assert all(parameter.is_cuda for parameter in model.parameters())
        found = trajectory(model)
        assert (found - plain).abs().max() < (0.05 if form.get("compile") else 1e-6), form


def test_fifty_iterations_with_a_4bit_head_are_those_of_what_it_holds(tmp_path):
    folder = tiny.make_tiny_llama(tmp_path)
    model, dense = load(folder, **SMALL), load(folder)
    weight = find_head(model).module.weight
    base_model(dense).lm_head.weight.data = dequantize_4bit(weight.data, weight.quant_state)
    assert weight.quant_state.nested
    found, plain = trajectory(model), trajectory(dense)
    assert (found - plain).abs().max() < 0.02


def test_it_answers_in_the_middle_of_a_training(tmp_path):
    folder = tiny.make_tiny_llama(tmp_path)
    model = load(folder, **SMALL).eval()
    chat = LocalChat(model, load_tokenizer(str(folder)), ChatTemplate(name="t", instruction="{input}"))
    with torch.autocast("cuda", torch.bfloat16):
        assert list(chat.stream([Message("user", "a b c")], Sampling(max_new_tokens=3)))


def test_the_card_holds_neither_embedding_nor_head(tmp_path):
    folder = tiny.make_tiny_llama(tmp_path, vocab_size=64_000, hidden=256)
    sizes = {}
    for name, form in {"plain": {}, "small": SMALL}.items():
        before = torch.cuda.memory_allocated()
        model = load(folder, **form)
        sizes[name] = torch.cuda.memory_allocated() - before
        del model
        gc.collect()
    dense = 64_000 * 256 * 2
    assert sizes["plain"] - sizes["small"] == pytest.approx(2 * dense - dense / 4, rel=0.05)


def test_the_cost_of_fp8_is_measured(tmp_path):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs Hopper")
    folder = tiny.make_tiny_llama(tmp_path)
    spec = ModelSpec(path=str(folder), compile=True)
    model = load_model(spec, device="cuda", dtype=torch.bfloat16, train=True).eval()
    cost = measure_rounding(model, make_batch(LENGTHS, torch.Generator().manual_seed(1)), to_fp8)
    assert cost.tokens == sum(LENGTHS)
    assert 0 < abs(cost.loss_change) < 0.1
    assert 0 < cost.mean_logit < cost.max_logit
