"""Families of our own on a CUDA card, where their attention goes through other kernels than on a CPU.

Type: python -m pytest -o addopts= tests/gpu
"""

import pytest
import torch

from xtuner.model.attention import packing_arguments
from xtuner.model.families.baichuan import BaichuanConfig, BaichuanForCausalLM
from xtuner.ops.packing import Packing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
LENGTHS = [5, 1, 130, 700]


@pytest.fixture(scope="module")
def exact():
    """A Baichuan-13B with few layers: heads of 128 numbers, which ALiBi makes 136; 5 of them, no power of 2."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 640, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 5}
    config = BaichuanConfig(vocab_size=500, model_max_length=1024, initializer_range=0.05, **sizes)
    assert config.alibi
    return BaichuanForCausalLM(config).cuda()


def run(model, rows, implementation):
    """Logits of rows in one pack, and the gradient of every weight."""
    model.set_attn_implementation(implementation)
    lengths = [row.shape[1] for row in rows]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].cuda()
    packing = Packing.from_lengths(lengths).to("cuda")
    borders = packing_arguments(packing, model) if implementation == "xtuner_packed" else {}
    logits = model(torch.cat(rows, dim=1), position_ids=positions, use_cache=False, **borders).logits.float()
    model.zero_grad()
    logits.square().mean().backward()
    return logits.detach(), {name: one.grad.float() for name, one in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float16, 0.02), (torch.bfloat16, 0.08)])
def test_alibi_is_exact_in_packed_rows(exact, dtype, tolerance):
    rows = [torch.randint(3, 500, (1, length), device="cuda") for length in LENGTHS]
    model = BaichuanForCausalLM(exact.config).cuda()
    model.load_state_dict(exact.state_dict())
    model = model.to(dtype)
    packed, _ = run(model, rows, "xtuner_packed")
    alone = torch.cat([run(exact, [row], "eager")[0] for row in rows], dim=1)
    assert (packed - alone).norm() < tolerance * alone.norm()
    _, found = run(model, rows[-1:], "xtuner_packed")
    _, expected = run(exact, rows[-1:], "eager")
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 2 * tolerance * gradient.norm(), name
