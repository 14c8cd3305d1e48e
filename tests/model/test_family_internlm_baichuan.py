"""InternLM, Baichuan and Baichuan2 against what the original code computed, and what is built on them.

`baichuan2_13b` is all of it at once: fused rows, ALiBi with a number of heads that is no power of two, a normed head.
"""

import pytest
import torch
from family_golden import (
    GOLDEN,
    IMPLEMENTATIONS,
    check_cache,
    check_gradients,
    check_greedy,
    check_learning,
    check_logits,
    check_merge,
    check_packing,
    check_saving,
    learn,
    load,
    open_golden,
)
from transformers import AutoModelForCausalLM

from xtuner.checkpoint.adapter import write_adapter
from xtuner.checkpoint.shards import ShardReader
from xtuner.config.spec import LoraSpec
from xtuner.model.families.baichuan import BaiChuanForCausalLM, BaichuanForCausalLM
from xtuner.model.families.internlm import InternLMForCausalLM

CLASSES = {
    "internlm_7b": InternLMForCausalLM,
    "baichuan_7b": BaiChuanForCausalLM,
    "baichuan_13b": BaichuanForCausalLM,
    "baichuan2_13b": BaichuanForCausalLM,
}


@pytest.fixture(params=CLASSES)
def name(request):
    return request.param


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_golden_values(name, implementation):
    model, golden = open_golden(name, implementation)
    assert type(model) is CLASSES[name]
    check_logits(model, golden)
    check_greedy(model, golden)
    check_cache(model, 300)
    check_gradients(name, model, golden, recompute=implementation == "xtuner_packed")


@pytest.mark.parametrize("trust", [None, True, False])
def test_no_remote_code_is_run_or_missed(name, trust):
    assert type(AutoModelForCausalLM.from_pretrained(GOLDEN / name, trust_remote_code=trust)) is CLASSES[name]


def test_packed_segments_equal_those_alone(name):
    check_packing(open_golden(name, "xtuner_packed")[0], 300)


def test_saved_folder_has_the_original_layout(name, tmp_path):
    model = open_golden(name)[0]
    frequencies = [key for key in ShardReader(GOLDEN / name).names() if key.endswith("inv_freq")]
    check_saving(name, model, tmp_path, ignored=frequencies)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(again) is CLASSES[name]
    assert again.config.to_dict() == {**model.config.to_dict(), "_name_or_path": str(tmp_path)}


@pytest.mark.parametrize("case", ["internlm_7b", "baichuan_7b", "baichuan_13b"])
def test_it_learns_two_sentences_by_heart(case):
    check_learning(case)


@pytest.mark.parametrize("quant", [None, 4, 8])
def test_baichuan2_learns_two_sentences_by_heart(quant):
    """A normed head bounds its logits by the length of what the last norm gives, so that norm is trained too."""
    rows = [torch.arange(5, 17), torch.arange(60, 46, -1)]
    torch.manual_seed(0)
    lora = LoraSpec(r=16, alpha=32, modules_to_save=["norm"])
    model = load("baichuan2_13b", quant=quant, lora=lora, recompute=False)
    assert learn(model, rows, steps=90, lr=1e-2, goal=0.1) < 0.1


def test_baichuan2_learns_in_full():
    rows = [torch.arange(5, 17), torch.arange(60, 46, -1)]
    assert learn(load("baichuan2_13b"), rows, steps=60, lr=5e-3, goal=0.1) < 0.1


def test_merged_adapters_say_the_same(name):
    check_merge(name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_batch_padded_on_the_left_says_what_each_row_says_alone(name, implementation):
    model = open_golden(name, implementation)[0]
    rows = [torch.randint(10, 200, (length,)) for length in (9, 4)]
    ids = torch.stack([torch.nn.functional.pad(row, (9 - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (9 - len(row), 0)) for row in rows])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(ids, attention_mask=mask, **options)[:, 9:]
    alone = [model.generate(row[None], **options)[0, len(row) :] for row in rows]
    assert together.tolist() == [row.tolist() for row in alone]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_layers_are_those_of_the_decoder(name, bits):
    model = load(name, quant=bits, train=False)
    kinds = {key.rpartition(".")[2]: type(module).__name__ for key, module in model.named_modules()}
    wanted = {"gate_proj", "up_proj", "down_proj", "o_proj"}
    wanted |= {"q_proj", "k_proj", "v_proj"} if name == "internlm_7b" else {"W_pack"}
    assert {key for key, kind in kinds.items() if kind == f"Linear{'4bit' if bits == 4 else '8bitLt'}"} == wanted
    assert kinds["lm_head"] == ("NormHead" if name == "baichuan2_13b" else "Linear")
    dense = open_golden(name)[0]
    ids = torch.arange(20, 50)[None]
    with torch.no_grad():
        near, exact = model(ids).logits, dense(ids).logits
    assert torch.corrcoef(torch.stack([near.flatten(), exact.flatten()]))[0, 1] > (0.9 if bits == 4 else 0.99)


def test_adapters_of_0_1_load(name, tmp_path):
    """0.1.x adapted every linear layer but the head, under the names of the checkpoint."""
    rows = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] if "intern" in name else ["self_attn.W_pack"]
    rows += ["self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    weights = ShardReader(GOLDEN / name)
    tensors = {}
    for layer in range(2):
        for row in rows:
            out, size = weights.get(f"model.layers.{layer}.{row}.weight").shape
            prefix = f"base_model.model.model.layers.{layer}.{row}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, size) * 0.1
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, 4) * 0.1
    targets = sorted({row.rpartition(".")[2] for row in rows})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": targets}
    write_adapter(tmp_path, config, tensors)
    model = load(name, adapter=str(tmp_path), train=False)
    plain = open_golden(name)[0]
    for key, parameter in plain.named_parameters():
        prefix = "base_model.model." + key.removesuffix(".weight")
        if f"{prefix}.lora_A.weight" in tensors:
            change = tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
            parameter.data += 2 * change
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-4, rtol=1e-4)
