"""The fast ways of training on a CUDA card against the plain ones: kernels, FP8, compiled layers, kept on the host.

Type: python -m pytest -o addopts= tests/gpu
"""

import pytest
import tiny
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch.nn import functional

from xtuner.config.spec import LoraSpec, ModelSpec, QuantSpec
from xtuner.dataset.batch import Batch
from xtuner.model import recompute
from xtuner.model.load import load_model
from xtuner.objective.sft import SFT
from xtuner.ops.attention import packed_attention
from xtuner.ops.fp8 import Fp8Weight, quantise_rows
from xtuner.ops.linear_cross_entropy import plain_cross_entropy_with_grad
from xtuner.ops.nf4 import dequantise as plain_dequantise
from xtuner.ops.packed4bit import Packed4bit
from xtuner.ops.packing import Packing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
LENGTHS = [60, 3, 129]


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(1024, 768), (7, 96), (130, 256)])
def test_4bit_weights_come_back_bit_by_bit(double, kind, shape):
    from xtuner.ops.triton.nf4 import dequantise

    torch.manual_seed(0)
    packed, state = quantize_4bit(torch.randn(shape, device="cuda"), quant_type=kind, compress_statistics=double)
    weight = Packed4bit.of(packed, state)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        state.dtype = dtype
        assert torch.equal(dequantise(weight, dtype), dequantize_4bit(packed, state)), dtype
        assert torch.equal(dequantise(weight, dtype), plain_dequantise(weight, dtype)), dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [5, 4096, 128257])
def test_cross_entropy_in_one_kernel(dtype, vocabulary):
    from xtuner.ops.triton.cross_entropy import cross_entropy_with_grad

    torch.manual_seed(0)
    logits = (5 * torch.randn(33, vocabulary + 3, device="cuda")).to(dtype)[:, :vocabulary]
    targets = torch.randint(0, vocabulary, (33,), device="cuda")
    losses, grads = cross_entropy_with_grad(logits, targets)
    expected, slopes = plain_cross_entropy_with_grad(logits, targets)
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(grads, slopes, atol=1e-5 if dtype == torch.float32 else 4e-3, rtol=1e-2)


@pytest.mark.parametrize("transposed", [False, True])
def test_fp8_products(transposed):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs Hopper")
    torch.manual_seed(0)
    weight = Fp8Weight(*quantise_rows(torch.randn(512, 1024, device="cuda", dtype=torch.bfloat16)))
    rows = torch.randn(96, 512 if transposed else 1024, device="cuda", dtype=torch.bfloat16)
    host = Fp8Weight(weight.weight.cpu(), weight.scales.cpu())
    found = weight.pull_back(rows) if transposed else weight.multiply(rows)
    expected = host.pull_back(rows.cpu()) if transposed else host.multiply(rows.cpu())
    assert (found.cpu().float() - expected.float()).norm() < 5e-3 * expected.float().norm()


@pytest.mark.parametrize("num_segments", [1, 3])
def test_segments_of_one_length_take_the_fastest_kernel(num_segments):
    torch.manual_seed(0)
    packing = Packing.from_lengths([256] * num_segments).to("cuda")
    shapes = [(8, 64), (2, 64), (2, 64)]
    exact = [torch.randn(1, h, 256 * num_segments, d, device="cuda", requires_grad=True) for h, d in shapes]
    given = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    out = packed_attention(*given, packing.cu_seqlens, packing.max_seqlen, scale=0.125)
    pull = torch.randn_like(out)
    grads = torch.autograd.grad(out, given, pull)
    parts = [states.split(256, 2) for states in exact]
    alone = [
        functional.scaled_dot_product_attention(
            q, k.repeat_interleave(4, 1), v.repeat_interleave(4, 1), is_causal=True, scale=0.125
        )
        for q, k, v in zip(*parts, strict=True)
    ]
    expected = torch.cat(alone, 2)
    assert (out.float() - expected).norm() < 1e-2 * expected.norm()
    for grad, other in zip(grads, torch.autograd.grad(expected, exact, pull.float()), strict=True):
        assert (grad.float() - other).norm() < 2e-2 * other.norm()


def trajectory(folder, steps=50, **form):
    """Return the losses of `steps` of SGD-like training with AdamW on rows of changing lengths."""
    torch.manual_seed(0)
    form = {"lora": LoraSpec(r=8), "recompute": "none", "compile": False, **form}
    model = load_model(ModelSpec(path=str(folder), **form), device="cuda", dtype=torch.bfloat16, train=True)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=5e-3
    )  # at 1e-2 rounding alone grows to 0.08 in 50 steps
    objective, losses = SFT(), []
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        lengths = LENGTHS if step % 3 else [192]
        ids = torch.randint(3, 90, (1, sum(lengths)), generator=draw).cuda()
        positions = torch.cat([torch.arange(length) for length in lengths])[None].cuda()
        batch = Batch(ids, ids.roll(-1), positions, Packing.from_lengths(lengths).to("cuda"))
        with torch.autocast("cuda", torch.bfloat16):
            loss = objective(model, batch)
        (loss.total / loss.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.total.detach() / loss.weight))
    return torch.tensor(losses)


FORMS = {
    "compiled": {"compile": True},
    "layers": {"recompute": "layers"},
    "one layer": {"recompute": 1},
    "mlp": {"recompute": "mlp"},
    "offload": {"recompute": "offload"},
    "offload of layers": {"recompute": "offload_layers"},
    "offload of groups": {"recompute": "offload_groups"},
    "compiled layers": {"compile": True, "recompute": "layers"},
    "compiled mlp": {"compile": True, "recompute": "mlp"},
    "compiled offload": {"compile": True, "recompute": "offload"},
    "compiled groups": {"compile": True, "recompute": "offload_groups"},
}


@pytest.mark.parametrize("quant", [None, QuantSpec(bits=4)], ids=["bf16", "nf4"])
def test_fifty_iterations_are_the_same_however_they_run(tmp_path, quant, monkeypatch):
    monkeypatch.setattr(recompute, "LEAST_BYTES", 1)  # this model's activations are small ones
    folder = tiny.make_tiny_llama(tmp_path)
    plain = trajectory(folder, quant=quant)
    assert plain[-5:].mean() < plain[:5].mean() - 0.05
    for name, form in FORMS.items():
        found = trajectory(folder, quant=quant, **form)
        exact = not form.get("compile")
        assert (found - plain).abs().max() < (1e-6 if exact else 0.05), (name, (found - plain).abs().max())


@pytest.mark.parametrize("compiled", [False, True])
def test_what_goes_to_the_host_is_not_on_the_card(tmp_path, compiled):
    folder = tiny.make_tiny_llama(tmp_path, layers=8, hidden=512)
    peaks = []
    for way in ("mlp", "offload"):
        spec = ModelSpec(path=str(folder), lora=LoraSpec(r=8), recompute=way, compile=compiled)
        model = load_model(spec, device="cuda", dtype=torch.bfloat16, train=True)
        ids = torch.full((1, 16384), 5, device="cuda")
        batch = Batch(ids, ids, torch.arange(16384)[None].cuda(), Packing.from_lengths([16384]).to("cuda"))
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            with torch.autocast("cuda", torch.bfloat16):
                SFT()(model, batch).total.backward()
            peaks.append(torch.cuda.max_memory_allocated() - held)
            model.zero_grad()
    activation = 16384 * 512 * 2
    assert peaks[3] < peaks[1] - 8 * 2 * activation, peaks


def test_fifty_iterations_in_fp8_stay_near(tmp_path):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs Hopper")
    folder = tiny.make_tiny_llama(tmp_path)
    plain = trajectory(folder)
    for compiled, resident in ((False, False), (True, False), (True, True)):
        quant = QuantSpec(bits=8, type="fp8", resident=resident)
        found = trajectory(folder, quant=quant, compile=compiled)
        assert (found - plain).abs().mean() < 0.05
        assert found[-5:].mean() < found[:5].mean() - 0.05
