"""Merging: exact against PEFT's own merge, in bounded memory, checked by itself, loadable by everyone."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tiny import make_tiny_internlm2, make_tiny_llama, make_tiny_qwen2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from xtuner.checkpoint.adapter import read_adapter
from xtuner.checkpoint.shards import ShardReader
from xtuner.errors import UserError
from xtuner.export.fold import Fold
from xtuner.export.merge import merge
from xtuner.export.verify import Comparison
from xtuner.model.load import load_tokenizer

IDS = torch.tensor([[1, 5, 9, 2, 30, 77, 300]])

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("internlm2", {"target_modules": ["wqkv", "wo", "w1", "w2", "w3", "output"]}),
    "patterns": (
        "llama",
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_.*": 3}},
    ),
    "rslora": ("llama", {"target_modules": ["q_proj"], "use_rslora": True}),
    "dora": ("internlm2", {"target_modules": ["wqkv", "w2"], "use_dora": True}),
    "dora with bias": ("qwen2", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "biases": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    "saved modules": ("internlm2", {"target_modules": ["wo"], "modules_to_save": ["output", "tok_embeddings"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied head": ("qwen2", {"target_modules": ["lm_head", "q_proj"]}),
    "tied head of another name": ("tied internlm2", {"target_modules": ["output", "wo"]}),
    "tied embedding": ("qwen2", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied saved head": ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "one layer": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
}
MAKERS = {
    "internlm2": make_tiny_internlm2,
    "tied internlm2": partial(make_tiny_internlm2, tie_word_embeddings=True),
    "llama": make_tiny_llama,
    "qwen2": make_tiny_qwen2,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: maker(tmp_path_factory.mktemp(name)) for name, maker in MAKERS.items()}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # Qwen2 brings no tokenizer: every byte a token
    core = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>").save_pretrained(folders["qwen2"])
    return folders


def adapted(base: Path, folder: Path, *, scale: float = 0.1, **options: Any) -> PeftModel:
    """An adapter with weights that do something, written by PEFT into `folder`."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_merged_says_what_base_and_adapter_say(bases: dict[str, Path], tmp_path: Path, case: str) -> None:
    family, options = CASES[case]
    model = adapted(bases[family], tmp_path / "adapter", **options)
    expected = logits(model)
    plain = logits(AutoModelForCausalLM.from_pretrained(bases[family], dtype=torch.float32))
    assert (expected - plain).abs().max() > 0.1, "the adapter does something"
    told: list[str] = []
    merge(bases[family], tmp_path / "adapter", tmp_path / "merged", tell=told.append)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-5)
    assert told[1] == f"Saving to {tmp_path / 'merged'}..."
    assert told[2].startswith("Checked against base + adapter: logits differ by at most"), told


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_the_base_stays(tmp_path: Path, dtype: torch.dtype) -> None:
    base = make_tiny_internlm2(tmp_path / "base", layers=4)
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)
    model = adapted(base, tmp_path / "adapter", target_modules=["wqkv", "w1", "output"])
    told: list[str] = []
    merge(base, tmp_path / "adapter", tmp_path / "merged", tell=told.append)
    reader = ShardReader(tmp_path / "merged")
    assert {reader.get(name).dtype for name in reader.names()} == {dtype}
    exact = model.merge_and_unload().state_dict()
    for name in reader.names():
        assert torch.equal(reader.get(name), exact[name].to(dtype)), f"{name}: rounded once, from fp32"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == dtype


@pytest.mark.parametrize("safe", [True, False])
def test_shards_and_files_for_other_programs(bases: dict[str, Path], tmp_path: Path, safe: bool) -> None:
    adapted(bases["internlm2"], tmp_path / "adapter", target_modules=["wqkv"])
    (tmp_path / "merged").mkdir()
    merge(bases["internlm2"], tmp_path / "adapter", tmp_path / "merged", max_shard_size="100KB", safe=safe)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    suffix = "safetensors" if safe else "bin"
    shards = sorted(name for name in names if name.endswith(f".{suffix}"))
    assert len(shards) > 2
    assert names - set(shards) == {
        "config.json",
        "generation_config.json",
        f"{'model' if safe else 'pytorch_model'}.{suffix}.index.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    assert all((tmp_path / "merged" / name).stat().st_size < 250_000 for name in shards)
    ends = json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [2, 750], "</s> and <|im_end|>: servers stop at these"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
print(repr(text))
ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
print(model.generate(**ids, max_new_tokens=5, do_sample=False).shape[1] - ids["input_ids"].shape[1])
assert not any(name.startswith("xtuner") for name in sys.modules)
"""


def test_plain_transformers_opens_it(bases: dict[str, Path], tmp_path: Path) -> None:
    """In a process that never heard of us."""
    adapted(bases["llama"], tmp_path / "adapter", target_modules=["q_proj"])
    merge(bases["llama"], tmp_path / "adapter", tmp_path / "merged", template="vicuna")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "merged")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    text, count = done.stdout.splitlines()
    assert text == repr("<s>USER: hi ASSISTANT:")
    assert int(count) >= 1


def test_an_adapter_that_does_not_fit(bases: dict[str, Path], tmp_path: Path) -> None:
    adapted(bases["internlm2"], tmp_path / "adapter", target_modules=["wqkv"])
    with pytest.raises(UserError, match=r"does not fit .* such as model\.layers\.0\.attention\.wqkv\.weight"):
        merge(bases["llama"], tmp_path / "adapter", tmp_path / "merged")
    wide = make_tiny_internlm2(tmp_path / "wide", hidden=128)
    with pytest.raises(UserError, match=r"for model\.layers\.0\.attention\.wqkv it needs a weight of"):
        merge(wide, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_folders_that_are_mixed_up(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["internlm2"]
    adapted(base, tmp_path / "adapter", target_modules=["wqkv"])
    for words, message in (
        ((tmp_path / "adapter", base, tmp_path / "out"), "is an adapter, not a model"),
        ((base, tmp_path / "nowhere", tmp_path / "out"), "no adapter in"),
        ((tmp_path / "nowhere", tmp_path / "adapter", tmp_path / "out"), "no model folder"),
        ((base, tmp_path / "adapter", base), "is the folder that is read from"),
        ((base, tmp_path / "adapter", tmp_path / "adapter"), "is the folder that is read from"),
    ):
        with pytest.raises(UserError, match=message):
            merge(*words)
    adapted(base, tmp_path / "other", target_modules=["wo"])
    with pytest.raises(UserError, match="holds an adapter, which loaders would put on top"):
        merge(base, tmp_path / "adapter", tmp_path / "other")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layer_replication", [[0, 1]], "uses layer_replication"),
        ("trainable_token_indices", [3], "uses trainable_token_indices"),
        ("something_new", True, "uses something_new"),
        ("init_lora_weights", "pissa", "started with pissa"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    bases: dict[str, Path], tmp_path: Path, field: str, value: object, message: str
) -> None:
    adapted(bases["internlm2"], tmp_path / "adapter", target_modules=["wqkv"])
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(UserError, match=message):
        merge(bases["internlm2"], tmp_path / "adapter", tmp_path / "merged")


def test_a_quantised_base_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    adapted(bases["llama"], tmp_path / "adapter", target_modules=["q_proj"])
    base = tmp_path / "quantised"
    base.mkdir()
    for file in bases["llama"].iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UserError, match="are quantised"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")


class _Wrong(Fold):
    """Folds a tenth too little."""

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight + 0.9 * (super().apply(name, weight) - weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_wrong_merge_is_found_and_removed(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_tiny_internlm2(tmp_path / "base", layers=4)
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)
    adapted(base, tmp_path / "adapter", target_modules=["wqkv", "w1", "w2"])
    monkeypatch.setattr("xtuner.export.merge.Fold", _Wrong)
    with pytest.raises(UserError, match="does not say what base and adapter say"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_no_number_is_no_agreement() -> None:
    assert not Comparison(float("nan"), float("nan"), 1.0, 0.1).agrees


def test_an_overflow_is_an_error(tmp_path: Path) -> None:
    base = make_tiny_internlm2(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16).save_pretrained(base)
    adapted(base, tmp_path / "adapter", scale=300, target_modules=["wqkv"])
    with pytest.raises(UserError, match=r"float16 cannot hold"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_added_tokens(bases: dict[str, Path], tmp_path: Path) -> None:
    """An adapter with more rows in embedding and head brings its vocabulary."""
    model = AutoModelForCausalLM.from_pretrained(bases["internlm2"], dtype=torch.float32)
    model.resize_token_embeddings(760)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["wo"], modules_to_save=["output", "tok_embeddings"]))
    model.save_pretrained(tmp_path / "adapter")
    merge(bases["internlm2"], tmp_path / "adapter", tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["vocab_size"] == 760
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), logits(model.eval()), atol=2e-5, rtol=1e-5)


def test_the_adapter_is_read_as_published(bases: dict[str, Path], tmp_path: Path) -> None:
    """Old adapters are .bin files."""
    model = adapted(bases["internlm2"], tmp_path / "adapter", target_modules=["wqkv", "wo", "w1", "w2", "w3"])
    model.save_pretrained(tmp_path / "old", safe_serialization=False)
    assert (tmp_path / "old" / "adapter_model.bin").is_file()
    merge(bases["internlm2"], tmp_path / "old", tmp_path / "merged")
    assert len(read_adapter(tmp_path / "old")[1]) == 2 * 2 * 5


def test_nobody_is_asked_about_code_of_others(tmp_path: Path) -> None:
    """transformers would ask at the keyboard, and wait."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "code.X"}}))
    (tmp_path / "code.py").write_text("")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    code = "import sys; from xtuner.export.streamed import StreamedModel; StreamedModel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, input="n\n")
    assert "[y/N]" not in done.stdout
    assert "brings its own program code" in done.stderr


def test_an_adapter_of_fewer_layers_is_refused(tmp_path: Path) -> None:
    """Every weight it has fits, but half of the base would go without."""
    small, large = make_tiny_llama(tmp_path / "small", layers=2), make_tiny_llama(tmp_path / "large", layers=4)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(small), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"nothing for 2 modules .* such as model\.layers\.2\.self_attn\.q_proj"):
        merge(large, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_of_a_merged_internlm2_opens_without_us(tmp_path: Path) -> None:
    """Its own class is known to nobody else, and no program code lies beside it."""
    base = make_tiny_internlm2(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules=["wqkv"])).save_pretrained(tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged", template="internlm2_chat")
    text = "你好 world\n<|im_end|>"
    code = (
        "import sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        "assert 'xtuner' not in sys.modules;"
        "print(t(sys.argv[2]).input_ids, t.apply_chat_template([dict(role='user', content='a')], tokenize=False))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "merged", text], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    ours = load_tokenizer(str(base))
    assert done.stdout.startswith(f"{ours(text).input_ids} <s><|im_start|>user\na<|im_end|>")
    assert load_tokenizer(str(tmp_path / "merged"))(text).input_ids == ours(text).input_ids
