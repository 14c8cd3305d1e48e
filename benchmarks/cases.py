"""The cases of the tables in docs/benchmarks.md; what they mean is said in training.py."""

LORA, QLORA, SMALL = "lora:llama3-8b", "qlora:llama3-8b", "qlora:llama2-7b"
LENGTHS = "8x1024,2x4096,1x16384,1x65536"
SHORT = ("1x512", "1x2048", "1x8192")
PAGED = "optim=paged_adamw_8bit"
LEAST = f"recompute=offload:{PAGED}:model.quant.head=true:host_embedding=true"
"""What makes a run as small as it can be."""

TABLES: dict[str, list[str]] = {
    "main": [
        f"hf:{LORA}:2x4096",
        f"liger:{LORA}:2x4096",
        f"unsloth:{LORA}:2x4096",
        f"xtuner:{LORA}:2x4096:recompute=none",
        "xtuner:fp8:llama3-8b:2x4096:recompute=none:model.quant.resident=true",
        f"unsloth:{QLORA}:2x4096",
        f"xtuner:{QLORA}:2x4096:recompute=none",
        "unsloth:qlora:internlm2-1.8b:8x4096",
        "xtuner:qlora:internlm2-1.8b:8x4096:recompute=none",
        "liger:full:internlm2-1.8b:4x4096",
        "unsloth:full:internlm2-1.8b:4x4096",
        "xtuner:full:internlm2-1.8b:4x4096:recompute=none",
    ],
    "short": [
        f"unsloth:{LORA}:2x4096",
        f"xtuner:{LORA}:2x4096:recompute=mlp",
        f"xtuner:{LORA}:2x4096:recompute=offload",
        f"unsloth:{QLORA}:2x4096",
        f"xtuner:{QLORA}:2x4096:recompute=offload",
        "unsloth:qlora:internlm2-1.8b:8x4096",
        "xtuner:qlora:internlm2-1.8b:8x4096:recompute=offload",
        f"unsloth:{SMALL}:1x2048",
        f"xtuner:{SMALL}:1x2048:recompute=offload",
        f"xtuner:{SMALL}:1x2048:{LEAST}",
    ],
    "chat": [
        f"xtuner:{LORA}:chat32",
        f"unsloth:{LORA}:chat32",
        f"unsloth-trl:{LORA}:chat32:packing=bfd:rows=2",
        f"liger:{LORA}:chat32",
        f"trl:{LORA}:chat32:packing=bfd:rows=2",
    ],
    "lengths": [
        *(f"xtuner:{QLORA}:{size}" for size in LENGTHS.split(",")),
        f"unsloth:{QLORA}:{LENGTHS}",
    ],
    # what is not named is planned, for each size of ours in a process of its own
    "cards": [
        *(f"xtuner:{SMALL}:{size}:card=6GB:{LEAST}" for size in SHORT),
        f"unsloth:{SMALL}:{','.join(SHORT)}:card=6GB:{PAGED}",
        *(f"xtuner:{SMALL}:{size}:card=8GB:{PAGED}" for size in SHORT),
        f"unsloth:{SMALL}:{','.join(SHORT)}:card=8GB:{PAGED}",
    ],
    "longest": [
        f"xtuner:{QLORA}:longest:card=24GB:{PAGED}",
        f"unsloth:{QLORA}:longest:card=24GB:{PAGED}",
        f"xtuner:{QLORA}:longest:card=80GB:{PAGED}:segment=65536",
        f"unsloth:{QLORA}:longest:card=80GB:{PAGED}:tries=1",
        f"xtuner:{QLORA}:longest:card=H200:{PAGED}:segment=65536",
    ],
}
