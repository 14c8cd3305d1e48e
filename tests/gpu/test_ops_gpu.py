"""Our tensor functions and models on a CUDA card, against the same in fp32 (or fp64) from plain operations.

Type: python -m pytest -o addopts= tests/gpu
"""

import pytest
import tiny
import torch
from torch import nn

from xtuner.config.spec import LoraSpec, ModelSpec, QuantSpec
from xtuner.dataset.batch import Batch
from xtuner.model.load import load_model
from xtuner.objective.sft import SFT
from xtuner.ops.attention import causal_mask, eager_attention, packed_attention
from xtuner.ops.linear_cross_entropy import chunk_rows, linear_cross_entropy, reference_linear_cross_entropy
from xtuner.ops.lora_linear import AdaptedLayer, DenseWeight, lora_linear, reference_lora_linear
from xtuner.ops.packing import Packing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
LENGTHS = [5, 1, 130, 64, 300]


def formula(query, key, value, lengths, window, scale):
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).cuda()
    total = sum(lengths)
    allowed = (segment[:, None] == segment) & causal_mask(total, total, window, segment.device)
    bias = torch.zeros(total, total, device="cuda").masked_fill(~allowed, float("-inf"))[None, None]
    return eager_attention(nn.Module(), query, key, value, bias, scale)[0].transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("window", [None, 2, 50])
@pytest.mark.parametrize(("heads", "groups", "size"), [(4, 4, 64), (8, 2, 128), (4, 1, 80)])
def test_packed_attention(dtype, window, heads, groups, size):
    torch.manual_seed(0)
    packing = Packing.from_lengths(LENGTHS).to("cuda")
    shape = [(heads, sum(LENGTHS), size), (groups, sum(LENGTHS), size), (groups, sum(LENGTHS), size)]
    exact = [torch.randn(1, *each, device="cuda", requires_grad=True) for each in shape]
    given = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    scale = size**-0.5
    out = packed_attention(*given, packing.cu_seqlens, packing.max_seqlen, scale=scale, window=window)
    expected = formula(*[tensor.to(dtype).float() for tensor in exact], LENGTHS, window, scale)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    pull = torch.randn_like(expected)
    grads = torch.autograd.grad((out.float() * pull).sum(), given)
    for grad, other in zip(grads, torch.autograd.grad((expected * pull).sum(), exact), strict=True):
        assert (grad.float() - other).norm() < (1e-4 if dtype == torch.float32 else 2e-2) * other.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_lora_linear_is_as_exact_as_plain_operations(dropout):
    torch.manual_seed(0)
    inputs = torch.randn(512, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(768, 1024, device="cuda", dtype=torch.bfloat16) / 32
    lora_a = (torch.randn(16, 1024, device="cuda") / 32).requires_grad_()
    lora_b = torch.randn(768, 16, device="cuda").requires_grad_()
    pull = torch.randn(512, 768, device="cuda")

    def run(function, dtype, source):
        torch.manual_seed(1)
        layer = AdaptedLayer(DenseWeight(weight), None, lora_a, lora_b, scaling=0.5)
        [out] = function(source, [layer], dropout=dropout, dtype=dtype)
        return [out, *torch.autograd.grad((out.to(pull.dtype) * pull).sum(), [source, lora_a, lora_b])]

    ours, plain = (run(function, torch.bfloat16, inputs) for function in (lora_linear, reference_lora_linear))
    if dropout:  # the same random numbers, so the two may be compared with each other
        exact = plain
    else:
        exact = run(reference_lora_linear, torch.float64, inputs.detach().double().requires_grad_())
    for found, other, truth in zip(ours, plain, exact, strict=True):
        error, allowed = ((x.double() - truth.double()).norm() / truth.double().norm() for x in (found, other))
        assert error <= 1.2 * allowed + 4e-3


def test_chunked_loss_needs_no_full_logits():
    torch.manual_seed(0)
    rows, size, vocabulary = 8192, 256, 92544
    hidden = torch.randn(rows, size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    head = nn.Linear(size, vocabulary, bias=False, device="cuda", dtype=torch.bfloat16)
    labels = torch.randint(vocabulary, (rows,), device="cuda")
    labels[::3] = -100
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = linear_cross_entropy(hidden, head, labels, chunk_rows(vocabulary), parameters=list(head.parameters()))
    grads = torch.autograd.grad(loss, [hidden, head.weight])
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 0.5 * rows * vocabulary * 4  # the full logits in fp32 alone
    expected = reference_linear_cross_entropy(hidden, head, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    for grad, other in zip(grads, torch.autograd.grad(expected, [hidden, head.weight]), strict=True):
        assert (grad.float() - other.float()).norm() < 1e-2 * other.float().norm()


def pack(lengths, device):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 500, (1, sum(lengths)), generator=draw)
    labels = ids.roll(-1, 1)
    labels[0, torch.tensor(lengths).cumsum(0) - 1] = -100
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return Batch(ids, labels, positions, Packing.from_lengths(lengths)).to(device)


@pytest.mark.parametrize("make", [tiny.make_tiny_internlm2, tiny.make_tiny_llama, tiny.make_tiny_qwen2])
@pytest.mark.parametrize("kind", ["full", "lora", "qlora", "int8"])
def test_training_in_bf16_follows_fp32_on_the_cpu(make, kind, tmp_path):
    folder = str(make(tmp_path, hidden=128))
    quant = {"qlora": QuantSpec(), "int8": QuantSpec(bits=8)}.get(kind)
    lora = None if kind == "full" else LoraSpec(r=4)
    results = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        torch.manual_seed(0)
        model = load_model(ModelSpec(path=folder, quant=quant, lora=lora), device=device, dtype=dtype, train=True)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = SFT()(model, pack(LENGTHS, device))
        loss.total.backward()
        assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
        assert {value.device.type for value in model.parameters()} == {device}
        gradient = torch.cat(
            [value.grad.flatten().float().cpu() for value in model.parameters() if value.requires_grad]
        )
        results.append(((loss.total / loss.weight).item(), gradient))
    (loss, gradient), (expected, other) = results
    assert loss == pytest.approx(expected, rel=1e-2)
    if kind != "int8":  # a CPU computes INT8 layers another way
        assert torch.cosine_similarity(gradient, other, dim=0) > 0.98


@pytest.mark.parametrize("quant", [None, QuantSpec()])
def test_a_model_in_training_can_answer(quant, tmp_path):
    spec = ModelSpec(path=str(tiny.make_tiny_internlm2(tmp_path, hidden=128)), quant=quant, lora=LoraSpec(r=4))
    model = load_model(spec, device="cuda", dtype=torch.bfloat16, train=True).eval()
    ids = torch.arange(5, 25, device="cuda")[None]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        plain = model.generate(input_ids=ids, **options)
        with torch.autocast("cuda", torch.bfloat16):
            cast = model.generate(input_ids=ids, **options)
    assert plain.shape == cast.shape == (1, 28)
