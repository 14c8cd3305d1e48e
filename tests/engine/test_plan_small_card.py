"""The plan of a small card: what a 4-bit head and an embedding on the host take, and when they are advised."""

from dataclasses import replace

import pytest
import tiny
import torch

from xtuner.config.check import to_spec
from xtuner.engine.plan.advice import find_change, list_changes
from xtuner.engine.plan.card import GIB, find_card
from xtuner.engine.plan.choose import choose, fits, weigh_chosen
from xtuner.engine.plan.memory import HEAD_SLAB, weigh
from xtuner.engine.plan.plan import make_plan
from xtuner.engine.plan.render import say_change
from xtuner.engine.plan.shape import load_shape
from xtuner.engine.plan.speed import clock
from xtuner.engine.plan.work import Work
from xtuner.model.head import base_model
from xtuner.model.load import load_model
from xtuner.ops import packed_head

LLAMA2 = "meta-llama/Llama-2-7b-hf"


def spec_of(path=LLAMA2, **parts):
    model = {"path": path, "lora": {}, "quant": {"bits": 4}, **parts.pop("model", {})}
    return to_spec({"model": model, "data": {"train": "rows.json", "template": "default"}, **parts})


def frozen(spec, shape):
    return weigh(spec, shape, find_card("6GB"), Work(2048, 2048), recompute="layers", compiled=False)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_bytes_of_4bit_weights_are_those_that_are_held(tmp_path, double, head):
    path = str(tiny.make_tiny_llama(tmp_path, hidden=256, intermediate_size=512))
    spec = spec_of(path, model={"quant": {"bits": 4, "double": double, "head": head}})
    model = base_model(load_model(spec.model, device="cpu", dtype=torch.bfloat16, train=True))
    held = {"NF4": 0, "bfloat16": 0}
    for name, weight in model.named_parameters():
        state = getattr(weight, "quant_state", None)
        if state is not None:
            scales = [state.absmax, *([state.state2.absmax] if state.nested else [])]
            held["NF4"] += sum(tensor.nbytes for tensor in (weight.data, *scales))
        elif "lora_" not in name:
            held["bfloat16"] += weight.nbytes
    found = frozen(spec, load_shape(path)).frozen
    assert found == pytest.approx(held, rel=2e-3)


def test_an_embedding_on_the_host_is_counted_there():
    shape = load_shape(LLAMA2)
    plain, moved = frozen(spec_of(), shape), frozen(spec_of(model={"host_embedding": True}), shape)
    size = 2 * 32000 * 4096
    assert plain.frozen["bfloat16"] - moved.frozen["bfloat16"] == size
    assert moved.host - plain.host == size


def test_weights_in_full_take_memory_and_save_time():
    """The adapted layers of Llama 2 7B once more in bfloat16; no scratch, and nothing to dequantise."""
    shape = load_shape(LLAMA2)
    specs = [spec_of(model={"quant": {"bits": 4, "resident": resident}}) for resident in (False, True)]
    plain, resident = (frozen(spec, shape) for spec in specs)
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert sum(resident.frozen.values()) - sum(plain.frozen.values()) == 2 * matrices
    assert plain.at_peak["scratch"] > resident.at_peak["scratch"] == 0
    one, other = (
        clock(spec, shape, find_card("H200"), Work(512, 512), recompute="none", compiled=True) for spec in specs
    )
    assert other.seconds < 0.85 * one.seconds


def test_transposes_take_memory_and_save_little_time():
    """Those of FP8 weights, a byte each."""
    shape, card, work = load_shape(LLAMA2), find_card("H200"), Work(8192, 4096)
    specs = [spec_of(model={"quant": {"bits": 8, "type": "fp8", "resident": resident}}) for resident in (False, True)]
    plain, resident = (frozen(spec, shape) for spec in specs)
    assert resident.frozen["FP8"] - plain.frozen["FP8"] == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert plain.at_peak["scratch"] - resident.at_peak["scratch"] == 4096 * 11008
    one, other = (clock(spec, shape, card, work, recompute="none", compiled=True).seconds for spec in specs)
    assert 0.98 * one < other < one


def test_the_slab_is_that_of_the_product():
    assert HEAD_SLAB == packed_head.SLAB


def test_a_7b_model_fits_where_it_did_not():
    """2,048 tokens at a time on 6 GB, of which the driver takes 0.6; moments go to the host."""
    shape, card, work = load_shape(LLAMA2), find_card("6GB"), Work(2048, 2048, 1000)
    words, memory = find_change(spec_of(), shape, card, work)
    assert {"optim.name=paged_adamw_8bit", "model.host_embedding=true"} <= set(words)
    assert not any(word.startswith("data.max_length") for word in words)
    assert memory.least < 0.98 * card.memory
    assert f"({memory.least / GIB:.2f} GiB, with moments in host memory)" in say_change(
        make_plan(spec_of(), shape, card, work)
    )
    smallest = spec_of(
        model={"quant": {"bits": 4, "head": True}, "host_embedding": True},
        optim={"name": "paged_adamw_8bit", "in_backward": True, "max_norm": None},
    )
    ways = [weigh(smallest, shape, card, work, recompute=to, compiled=False) for to in ("offload", "offload_layers")]
    assert min(memory.peak - memory.paged for memory in ways) / GIB < 4.4


def test_it_is_advised_only_where_it_is_possible():
    def said(spec, **facts):
        return {word for words in list_changes(spec, **{"is_cpu": False, "tied": False, **facts}) for word in words}

    ends = {"model.host_embedding=true", "model.quant.head=true"}
    assert ends <= said(spec_of())
    assert not ends & said(spec_of(), tied=True)
    assert not ends & said(spec_of(), is_cpu=True)
    assert not ends & said(spec_of(model={"lora": {"modules_to_save": ["lm_head"]}}))
    assert not ends & said(spec_of(model={"host_embedding": True, "quant": {"bits": 4, "head": True}}))
    assert ends & said(spec_of(strategy={"name": "fsdp"})) == {"model.quant.head=true"}
    assert ends & said(spec_of(model={"quant": {"bits": 8}})) == {"model.host_embedding=true"}
    assert "model.quant.double=true" in said(spec_of(model={"quant": {"bits": 4, "double": False}}))


LONGEST = [("24GB", 100_000), ("80GB", 400_000), ("H200", 1_000_000)]
"""What one sample of an 8B model in 4 bits is to reach."""


@pytest.mark.parametrize(("name", "tokens"), LONGEST)
def test_the_longest_samples_fit(name, tokens):
    """By the plan, with 100 GiB of host memory to spare, or on a machine of which only the card is known."""
    shape, card = load_shape("meta-llama/Meta-Llama-3-8B"), find_card(name)
    spec, work = spec_of("meta-llama/Meta-Llama-3-8B", optim={"name": "paged_adamw_8bit"}), Work(tokens, tokens, 1000)
    for each in (card, replace(card, host=100 * GIB)):
        assert choose(spec, shape, each, work).recompute == "offload_groups"
        assert fits(weigh_chosen(spec, shape, each, work), each)


def test_a_group_waits_with_one_input():
    shape, card, work = load_shape(LLAMA2), find_card("24GB"), Work(2048, 2048)
    layers, groups = (
        weigh(spec_of(), shape, card, work, recompute=way, compiled=False)
        for way in ("offload_layers", "offload_groups")
    )
    assert layers.host == 32 * 2048 * layers.boundary
    assert groups.host == 8 * 2048 * layers.boundary
    one, other = (
        clock(spec_of(), shape, card, work, recompute=way, compiled=False).seconds
        for way in ("offload_layers", "offload_groups")
    )
    assert 1.2 * one < other < 1.5 * one  # 1.75 more forward passes instead of 1, and tiles
