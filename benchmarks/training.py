"""Training speed and memory on one card: ours and others', one after another on the same machine.

    python benchmarks/training.py make SHAPE FOLDER          write a checkpoint with random weights (a card is needed)
    python benchmarks/training.py run CASE FOLDER            one row, as a line of JSON
    python benchmarks/training.py table OUT [CASE ...]       make the checkpoints, run every case in its own process,
                                                             write OUT/training.jsonl and print a table

A case is TOOL:METHOD:SHAPE:ROWSxLENGTH[:SETTING=VALUE...], for example xtuner:lora:llama3-8b:2x4096:recompute=none.
Tools: xtuner, hf (transformers + PEFT), liger, unsloth, where they are installed. LoRA and QLoRA have rank 64 on all
linear layers without dropout; one AdamW step (fused) per micro-batch of random tokens, bfloat16; medians of six steps
after three; tokens are real ones, there is no padding. MFU counts 4 N FLOP a token where weights are frozen, else 6 N,
and causal attention, over 790 TFLOP/s. Memory is what torch allocated and reserved at its peak.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rope_theta": 5e5,
    },
    "llama2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    "internlm2-1.8b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 92544,
        "rope_theta": 1e6,
    },
}
CASES = [
    "hf:lora:llama3-8b:2x4096",
    "liger:lora:llama3-8b:2x4096",
    "unsloth:lora:llama3-8b:2x4096",
    "xtuner:lora:llama3-8b:2x4096:recompute=none",
    "xtuner:lora:llama3-8b:2x4096:recompute=layers",
    "xtuner:lora:llama3-8b:2x4096:recompute=offload",
    "xtuner:fp8:llama3-8b:2x4096:recompute=none",
    "unsloth:qlora:llama3-8b:2x4096",
    "xtuner:qlora:llama3-8b:2x4096:recompute=none",
    "xtuner:qlora:llama3-8b:2x4096:recompute=offload",
    "unsloth:qlora:internlm2-1.8b:8x4096",
    "xtuner:qlora:internlm2-1.8b:8x4096:recompute=none",
    "xtuner:qlora:internlm2-1.8b:8x4096:recompute=layers",
    "liger:full:internlm2-1.8b:4x4096",
    "unsloth:full:internlm2-1.8b:4x4096",
    "xtuner:full:internlm2-1.8b:4x4096:recompute=none",
    "unsloth:qlora:llama2-7b:1x2048",
    "xtuner:qlora:llama2-7b:1x2048:recompute=offload",
]
STEPS, WARM = 9, 3
PEAK_FLOPS = 790e12
RANK = 64
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> int:
    """Read the words and do one of the three."""
    words = sys.argv[1:]
    if words[:1] == ["make"] and len(words) == 3:
        make(words[1], Path(words[2]))
    elif words[:1] == ["run"] and len(words) == 3:
        print(json.dumps(run(words[1], words[2])), flush=True)
    elif words[:1] == ["table"] and len(words) >= 2:
        table(Path(words[1]), words[2:] or CASES)
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


def make(shape: str, folder: Path) -> None:
    """Write a Llama checkpoint with random bfloat16 weights and a tokenizer of three words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=32768, bos_token_id=1, eos_token_id=2)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="8GB")
    words = Tokenizer(BPE(vocab={"<unk>": 0, "<s>": 1, "</s>": 2}, merges=[]))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)


def run(case: str, folder: str) -> dict[str, Any]:
    """Train a few steps with one tool; return the figures."""
    tool, method, shape, size, *settings = case.split(":")
    num_rows, length = (int(number) for number in size.split("x"))
    step = {"xtuner": ours, "hf": plain, "liger": plain, "unsloth": unsloth}[tool](
        method, folder, num_rows, length, tool, dict(setting.split("=") for setting in settings)
    )
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds, losses = [], []
    vocabulary = SHAPES[shape]["vocab_size"]
    generator = torch.Generator(device="cuda").manual_seed(0)
    for _ in range(STEPS):
        ids = torch.randint(3, vocabulary, (num_rows, length), device="cuda", generator=generator)
        torch.cuda.synchronize()
        began = time.perf_counter()
        loss = step(ids)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(round(float(loss), 4))
    speed = num_rows * length / statistics.median(seconds[WARM:])
    return {
        "case": case,
        "tokens_per_second": round(speed),
        "mfu": round(speed * flops_per_token(shape, length, method) / PEAK_FLOPS, 3),
        "allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        "first_step_seconds": round(seconds[0], 1),
        "losses": [losses[0], losses[-1]],
        "card": torch.cuda.get_device_name(),
        "versions": versions(),
    }


def ours(
    method: str, folder: str, num_rows: int, length: int, tool: str, settings: dict[str, str]
) -> Callable[..., Any]:
    """Return a step of our engine: the very function that a run calls."""
    import torch

    from xtuner.config.spec import RunSpec
    from xtuner.dataset.batch import IGNORE, Batch
    from xtuner.engine.optim import build_optimiser
    from xtuner.engine.precision import choose_precision, find_device
    from xtuner.engine.step import train_step
    from xtuner.engine.strategy.single import Single
    from xtuner.model.load import load_model
    from xtuner.objective.sft import SFT
    from xtuner.ops.packing import Packing

    quant = {"qlora": {"bits": 4}, "fp8": {"bits": 8, "type": "fp8"}}.get(method)
    model_spec = {"path": folder, "compile": True, "quant": quant, "lora": None if method == "full" else {"r": RANK}}
    if method == "full":
        model_spec["dtype"] = "bfloat16"  # as the others hold it in this comparison
    spec = RunSpec.model_validate({"model": {**model_spec, **settings}, "data": {"train": "none.json"}})
    device = find_device()
    precision = choose_precision(spec, device)
    strategy = Single(device, precision)
    model = load_model(spec.model, device=str(device), dtype=precision.weights, train=True)
    model = strategy.place(model, lambda placed: build_optimiser(spec.optim, placed))
    objective = SFT()
    done: list[Any] = []

    def step(ids: torch.Tensor) -> torch.Tensor:
        labels = ids.roll(-1, dims=1)
        labels[:, -1] = IGNORE
        positions = torch.arange(length).repeat(num_rows)[None]
        flat = (ids.view(1, -1).cpu(), labels.view(1, -1).cpu(), positions)
        batch = Batch(*flat, packing=Packing.from_lengths([length] * num_rows))
        train_step(
            strategy, objective, model, [batch], first=len(done), seed=0, lr=1e-5, max_norm=1.0, after=done.append
        )
        loss: torch.Tensor = done[-1].loss.total / done[-1].loss.weight
        return loss

    return step


def plain(
    method: str, folder: str, num_rows: int, length: int, tool: str, settings: dict[str, str]
) -> Callable[..., Any]:
    """Return a step of transformers with PEFT, with Liger's kernels if `tool` says so."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if tool == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    quant: dict[str, Any] = {}
    if method == "qlora":
        kinds = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        quant["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **kinds
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": 0}, attn_implementation="sdpa", **quant
    )
    model.config.use_cache = False
    if method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if method != "full":
        model.enable_input_require_grads()
        lora = LoraConfig(r=RANK, lora_alpha=16, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=TARGETS)
        model = get_peft_model(model, lora)
    return stepper(model.train())


def unsloth(
    method: str, folder: str, num_rows: int, length: int, tool: str, settings: dict[str, str]
) -> Callable[..., Any]:
    """Return a step of Unsloth as its guide sets it up."""
    import torch
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        folder,
        max_seq_length=length,
        dtype=torch.bfloat16,
        load_in_4bit=method == "qlora",
        full_finetuning=method == "full",
    )
    if method != "full":
        model = FastLanguageModel.get_peft_model(
            model,
            r=RANK,
            lora_alpha=16,
            lora_dropout=0,
            bias="none",
            use_gradient_checkpointing="unsloth",
            target_modules=TARGETS,
        )
    FastLanguageModel.for_training(model)
    return stepper(model)


def stepper(model: Any) -> Callable[..., Any]:
    """Return a step as a training loop of one's own has it."""
    import torch

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step(ids: Any) -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def flops_per_token(shape: str, length: int, method: str) -> float:
    """Return the arithmetic a token needs: recomputation is not counted, nor are adapters."""
    s = SHAPES[shape]
    hidden, head = s["hidden_size"], s["hidden_size"] // s["num_attention_heads"]
    per_layer = 2 * hidden * hidden + 2 * hidden * head * s["num_key_value_heads"] + 3 * hidden * s["intermediate_size"]
    weights = s["num_hidden_layers"] * per_layer + s["vocab_size"] * hidden
    attention = 2 * length * hidden * s["num_hidden_layers"]
    return (6.0 if method == "full" else 4.0) * weights + 3 * attention


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "peft", "bitsandbytes", "unsloth", "liger-kernel", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def table(out: Path, cases: list[str]) -> None:
    """Run every case in a process of its own and write the figures; a case that fails is a row too."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, (out / "training.jsonl").open("w", encoding="utf-8") as file:
        for case in cases:
            shape = case.split(":")[2]
            folder = Path(place) / shape
            if not folder.exists():
                subprocess.run([sys.executable, __file__, "make", shape, str(folder)], check=True, capture_output=True)
            done = subprocess.run(
                [sys.executable, __file__, "run", case, str(folder)],
                capture_output=True,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
            lines = done.stdout.strip().splitlines()
            if done.returncode == 0 and lines:
                row = json.loads(lines[-1])
            else:
                row = {"case": case, "failed": (done.stderr.strip().splitlines() or ["no words"])[-1][:300]}
            file.write(json.dumps(row) + "\n")
            file.flush()
            shown = row.get("failed") or (
                f"{row['tokens_per_second']:>7,} tok/s  MFU {row['mfu']:.0%}  {row['allocated_gib']:6.2f} GiB "
                f"({row['reserved_gib']:.2f} reserved)  loss {row['losses'][-1]}"
            )
            print(f"{case:60} {shown}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
