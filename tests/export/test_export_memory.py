"""Merging takes the memory of a shard and a matrix, not of the model (a 7B merge must fit into 8 GB)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import GOLDEN, copy_tokenizer

from xtuner.checkpoint.adapter import write_adapter
from xtuner.checkpoint.shards import ShardWriter
from xtuner.model.families.internlm2 import InternLM2Config, InternLM2ForCausalLM

MEASURE = """
import resource, sys
from pathlib import Path
import peft, torch
from xtuner.export.merge import merge
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
told = []
merge(sys.argv[1], sys.argv[2], Path(sys.argv[3]), max_shard_size="16MB", device="cpu", tell=told.append)
assert told[-1].startswith("Checked"), told
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in other units elsewhere")
def test_peak_memory(tmp_path: Path) -> None:
    config = InternLM2Config(
        vocab_size=752,
        hidden_size=512,
        intermediate_size=2560,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bias=False,
    )
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in InternLM2ForCausalLM(config).state_dict().items()}
    base, generator = tmp_path / "base", torch.Generator().manual_seed(0)
    with ShardWriter(base, 10**12) as writer:
        for name, shape in shapes.items():
            tensor = torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=generator)
            writer.add(name, tensor.bfloat16())
    config.save_pretrained(base)
    copy_tokenizer(GOLDEN / "internlm2", base)
    pairs = {}
    for name, shape in shapes.items():
        if ".w1." in name or ".wqkv." in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            pairs[f"{module}.lora_A.weight"] = 0.1 * torch.randn(4, shape[1], generator=generator)
            pairs[f"{module}.lora_B.weight"] = 0.1 * torch.randn(shape[0], 4, generator=generator)
    write_adapter(tmp_path / "adapter", {"r": 4, "lora_alpha": 4, "target_modules": ["w1", "wqkv"]}, pairs)
    size = (base / "model.safetensors").stat().st_size / 2**20
    assert size > 200
    words = [str(base), str(tmp_path / "adapter"), str(tmp_path / "merged")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 0.8 * size, f"{done.stdout} MB more for a model of {size:.0f} MB"
