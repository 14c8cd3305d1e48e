"""What a plan chooses, what it advises, and what it knows of models and cards."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import stock
import torch

from xtuner.config.check import to_spec
from xtuner.config.spec import LoraSpec, ModelSpec
from xtuner.config.spec_override import override_spec
from xtuner.engine.memory import advise
from xtuner.engine.plan.advice import find_change, work_of
from xtuner.engine.plan.card import GIB, Card, find_card, find_cards, match_card
from xtuner.engine.plan.choose import choose, fits, list_ways, weigh_chosen
from xtuner.engine.plan.memory import weigh
from xtuner.engine.plan.plan import make_plan
from xtuner.engine.plan.render import render_lines, render_page
from xtuner.engine.plan.run import plan_run
from xtuner.engine.plan.shape import load_shape, shape_of
from xtuner.engine.plan.speed import clock
from xtuner.engine.plan.work import Work, estimate_work, row_of
from xtuner.engine.strategy.world import World
from xtuner.errors import UserError
from xtuner.model.load import load_model

SMALL_MIXTRAL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
LLAMA2, LLAMA3 = "meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B"


def spec_of(path=LLAMA3, **parts):
    model = {"path": path, "lora": {}, **parts.pop("model", {})}
    return to_spec({"model": model, "data": {"train": "rows.json", "template": "default"}, **parts})


def of_size(gib):
    return find_card(f"{gib}GB")


@pytest.mark.parametrize(("gib", "expected"), [(128, "none"), (80, int), (70, "mlp"), (25, "offload"), (10, "layers")])
def test_recompute_is_the_fastest_that_fits(gib, expected):
    work, shape, card = Work(16384, 4096, 10), load_shape(LLAMA3), of_size(gib)
    spec = spec_of(model={"compile": False})
    chosen = choose(spec, shape, card, work)
    assert isinstance(chosen.recompute, int) if expected is int else chosen.recompute == expected
    assert chosen.why_recompute
    assert fits(weigh_chosen(spec, shape, card, work), card) == (gib > 20)
    options = {"spec": spec, "shape": shape, "card": card, "work": work, "compiled": False}
    taken = clock(**options, recompute=chosen.recompute).seconds
    for way in list_ways(spec, shape, card):
        if clock(**options, recompute=way).seconds < taken and gib > 20:
            assert weigh(**options, recompute=way).need * 1.06 > card.memory, way


def test_experts_have_no_mlp_that_is_recomputed_alone():
    card = find_card("H200")
    experts = shape_of({"model_type": "mixtral", **SMALL_MIXTRAL}, "here", {})
    assert {"mlp", "offload", "offload_groups"} & set(list_ways(spec_of(), experts, card)) == set()
    assert {"mlp", "offload"} < set(list_ways(spec_of(), load_shape(LLAMA3), card))
    cpu = Card("CPU", 64 * GIB, 1e10, 0.0, (1e10, 1e10), (1e10, 1e10), 1e10, is_cpu=True)
    assert "mlp" in list_ways(spec_of(), load_shape(LLAMA3), cpu)
    assert "offload" not in list_ways(spec_of(), load_shape(LLAMA3), cpu)


@pytest.mark.parametrize("name", [name for name in stock.STOCK if stock.is_known(name) and name != "mamba"])
def test_ways_that_are_offered_run(name, tmp_path):
    """A plan must not choose what the model's layers refuse."""
    folder = str(stock.save_model(name, tmp_path, num_hidden_layers=2))
    ways = list_ways(spec_of(folder), load_shape(folder), find_card("H200"))
    for way in ("mlp", "offload_groups"):
        spec = ModelSpec(path=folder, lora=LoraSpec(r=2), recompute=way)
        try:
            model = load_model(spec, device="cpu", dtype=torch.float32, train=True, packed=False)
            model(input_ids=torch.arange(5, 15)[None], use_cache=False).logits.sum().backward()
        except UserError:
            assert way not in ways
        else:
            assert way in ways


@pytest.mark.parametrize(("checkpoint", "count"), [({"every": 10, "keep": 2}, 2), ({"every": None, "last": True}, 1)])
def test_the_best_state_takes_disk_too(checkpoint, count):
    work = Work(512, 512, iterations=100)
    for best, more in ((None, 0), ("auto", 1)):
        spec = spec_of(checkpoint={**checkpoint, "best": best})
        assert make_plan(spec, load_shape(LLAMA3), find_card("H200"), work).disk.count == count + more


@pytest.mark.parametrize(("stage", "tiles"), [(2, True), (3, False)])
def test_zero_3_has_no_tiles_of_which_ranks_have_different_numbers(stage, tiles):
    spec = spec_of(strategy={"name": "deepspeed", "config": {"zero_optimization": {"stage": stage}}})
    ways = set(list_ways(spec, load_shape(LLAMA3), find_card("H200")))
    assert ({"mlp", "offload"} <= ways, "offload_layers" in ways) == (tiles, True)


def test_what_is_asked_for_is_done():
    spec = spec_of(model={"recompute": "layers", "compile": True})
    chosen = choose(spec, load_shape(LLAMA3), find_card("H200"), Work(2048, 2048, 1))
    assert (chosen.recompute, chosen.compiled, chosen.why_recompute, chosen.why_compiled) == ("layers", True, "", "")


def test_compilation_must_be_earned_back():
    spec, shape, card = spec_of(), load_shape(LLAMA3), find_card("H200")
    assert not choose(spec, shape, card, Work(8192, 4096, 100)).compiled
    assert choose(spec, shape, card, Work(8192, 4096, 10_000)).compiled
    assert not choose(spec, shape, card, Work(8192, 4096, 10_000), can_compile=False).compiled
    cpu = Card("CPU", 64 * GIB, 1e10, 0.0, (1e10, 1e10), (1e10, 1e10), 1e10, is_cpu=True)
    assert not choose(spec, shape, cpu, Work(8192, 4096, 10_000)).compiled


def test_a_run_is_compiled_where_only_that_fits():
    """A million tokens on one H200: compiled layers keep less, which two iterations would not earn back."""
    spec, shape, card = spec_of(model={"quant": {"bits": 4}}), load_shape(LLAMA3), find_card("H200")
    work = Work(1_000_000, 1_000_000, 2)
    options = {"spec": spec, "shape": shape, "card": card, "work": work}
    for way in list_ways(spec, shape, card):
        assert weigh(**options, recompute=way, compiled=False).need > card.memory
    chosen = choose(spec, shape, card, work)
    assert (chosen.recompute, chosen.compiled) == ("offload_groups", True)
    assert "would not fit otherwise" in chosen.why_compiled
    assert make_plan(spec, shape, card, work).fits
    assert not choose(spec, shape, card, work, can_compile=False).compiled
    assert not choose(override_spec(spec, ["model.compile=false"]), shape, card, work).compiled


def test_advice_makes_it_fit():
    shape = load_shape(LLAMA2)
    for gib, parts in [(16, {}), (8, {"loop": {"batch_size": 8}}), (24, {"model": {"lora": None}})]:
        spec, card = spec_of(LLAMA2, **parts), of_size(gib)
        work = Work(*row_of(spec))
        assert not fits(weigh_chosen(spec, shape, card, work), card)
        found = find_change(spec, shape, card, work)
        assert found is not None
        changed = override_spec(spec, found[0])
        assert fits(weigh_chosen(changed, shape, card, work_of(changed, work)), card)
    assert find_change(spec_of(LLAMA2), shape, of_size(2), Work(2048, 2048)) is None


def test_advice_after_memory_ran_out_says_what_was_held():
    spec = spec_of(loop={"batch_size": 8}, model={"recompute": "none"})
    plan = make_plan(spec, load_shape(LLAMA3), find_card("H200"), Work(16384, 2048, 10))
    said = advise(spec, plan)
    assert "loop.batch_size=1 loop.accumulate=8" in said
    assert "activations" in said
    one = spec_of(model={"recompute": "none", "quant": {"bits": 4}})
    plan = make_plan(one, load_shape(LLAMA3), find_card("H200"), Work(2048, 2048, 10))
    assert "model.recompute=layers" in advise(one, plan)


def test_a_resolved_spec_has_nothing_open():
    plan = make_plan(spec_of(), load_shape(LLAMA3), find_card("H200"), Work(2048, 2048, 10))
    assert plan.resolved().model.recompute == "none"
    assert plan.resolved().model.compile is False
    assert plan.spec.model.recompute == "auto"


# numbers of parameters that the model cards state
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("internlm/internlm2-chat-1_8b", 1_889_110_016),
        ("internlm/internlm2-20b", 19_861_149_696),
        (LLAMA2, 6_738_415_616),
        (LLAMA3, 8_030_261_248),
        ("Qwen/Qwen1.5-7B-Chat", 7_721_324_544),
        ("Qwen/Qwen-7B", 7_721_324_544),
        ("THUDM/chatglm3-6b", 6_243_584_000),
        ("baichuan-inc/Baichuan2-7B-Chat", 7_505_973_248),
        ("google/gemma-2b-it", 2_506_172_416),
        ("mistralai/Mistral-7B-Instruct-v0.2", 7_241_732_096),
        ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),
        ("microsoft/Phi-3-mini-4k-instruct", 3_821_079_552),
        ("01-ai/Yi-34B-200K", 34_388_917_248),
        ("openbmb/MiniCPM-2B-sft-bf16", 2_724_880_896),
    ],
)
def test_published_sizes(name, parameters):
    shape = load_shape(name)
    assert shape.num_parameters == pytest.approx(parameters, rel=2e-3)
    assert "not on this disk" in shape.source
    assert not shape.is_exact


def test_sizes_from_headers_and_from_config_agree(tmp_path):
    """The built-in model by its headers, and by its config alone."""
    from xtuner.apps.quickstart import built_in_model

    exact = load_shape(str(built_in_model()))
    (tmp_path / "config.json").write_text((built_in_model() / "config.json").read_text("utf-8"), "utf-8")
    told = load_shape(str(tmp_path))
    assert exact.is_exact
    assert not told.is_exact
    assert {(x.name, x.outputs, x.inputs, x.count, x.place) for x in exact.linears} == {
        (x.name, x.outputs, x.inputs, x.count, x.place) for x in told.linears
    }
    assert (exact.inner, exact.num_parameters) == (told.inner, told.num_parameters)


def test_experts_are_counted_once_and_used_in_part():
    config = {"model_type": "mixtral", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
    config |= {"intermediate_size": 16, "vocab_size": 10, "num_local_experts": 8, "num_experts_per_tok": 2}
    shape = shape_of(config, "here", {})
    up = next(x for x in shape.linears if x.name == "up_proj")
    assert (up.count, up.share, up.fused) == (16, 0.25, True)
    assert shape.inner == 32


def test_unknown_models_say_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="not on this disk"):
        load_shape("someone/something-7b")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}), "utf-8")
    with pytest.raises(UserError, match="does not say num_hidden_layers"):
        load_shape(str(tmp_path))


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("h200", "H200"),
        ("4090", "RTX 4090"),
        ("RTX-3060", "RTX 3060"),
        ("A100", "A100 40GB"),
        ("a100 80gb", "A100 80GB"),
        ("a100-80g", "A100 80GB"),
        ("A100-SXM4-80GB", "A100 80GB"),
        ("a10040gb", "A100 40GB"),
        ("H100 80GB", "H100"),
        ("h100-pcie", "H100 PCIe"),
        ("Tesla T4", "T4"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("RTX 4090 24GB", "RTX 4090"),
        ("v100-16gb", "V100 with 16 GB"),
    ],
)
def test_cards_by_name(word, name):
    assert find_card(word).name == name


@pytest.mark.parametrize(
    ("word", "gib"), [("8GB", 8), ("8 GB", 8), ("8g", 8), ("8", 8), ("8192MB", 8), ("6.5GiB", 6.5), ("V100 16GB", 16)]
)
def test_cards_by_size(word, gib):
    assert find_card(word).memory == gib * 0.98 * GIB


def test_several_cards():
    assert (find_cards("8xA100-80G").count, find_cards("8xA100-80G").name) == (8, "A100 80GB")
    assert find_cards("2 x 24GB").count == 2
    assert find_cards("H200") == find_card("H200")


@pytest.mark.parametrize(
    "word", ["H300", "", "banana", "0GB", "0", "5000GB", "-3GB", "2TB", "cpu", "mi300", "RTX 3060 Ti", "0xH200"]
)
def test_wrong_cards_are_refused(word):
    with pytest.raises(UserError) as caught:
        find_card(word)
    assert caught.value.exit_code == 2
    assert caught.value.fix


@pytest.mark.parametrize(
    ("driver", "gib", "rates"),
    [
        ("NVIDIA H200", 139, "H200"),
        ("NVIDIA A100-SXM4-80GB", 79, "A100 80GB"),
        ("NVIDIA L40S", 44, "L40S"),
        ("NVIDIA L40", 44, "L40"),
        ("NVIDIA H100 80GB HBM3", 79, "H100"),
        ("NVIDIA H100 PCIe", 79, "H100 PCIe"),
        ("NVIDIA RTX 6000 Ada Generation", 47, "RTX 6000 Ada"),
        ("NVIDIA GeForce RTX 4090", 23, "RTX 4090"),
        ("Something Else", 12, "RTX 3060"),
    ],
)
def test_cards_by_what_the_driver_says(driver, gib, rates):
    card = match_card(driver, gib * GIB)
    assert (card.name, card.memory, card.matmul) == (driver, gib * GIB, find_card(rates).matmul)
    assert bool(card.rates_of) == (driver == "Something Else")


def test_work_is_counted_from_the_size_of_files(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "' + "word " * 2000 + '"}\n', "utf-8")
    spec = to_spec({"model": {"path": "m"}, "data": {"train": str(file), "max_length": 256}, "loop": {"epochs": 3}})
    assert estimate_work(spec) == Work(256, 256, 36)
    assert estimate_work(override_spec(spec, ["max_iters=7"])).iterations == 7
    assert estimate_work(override_spec(spec, ["data.train.0.path=org/data"])).iterations is None


def test_a_run_plans_with_its_largest_batch(tmp_path):
    from xtuner.apps.quickstart import built_in_model

    spec = spec_of(str(built_in_model()), loop={"batch_size": 2})
    plan = plan_run(spec, torch.device("cpu"), np.array([5, 90, 40, 100]), 12, World())
    assert plan is not None
    assert plan.work == Work(190, 100, 12, is_exact=True)
    assert plan.resolved().model.recompute == "none"
    assert plan_run(spec_of("someone/something-7b"), torch.device("cpu"), np.array([5]), 1, World()) is None


def test_ranks_recompute_alike():
    class Tighter(World):
        """Another rank must recompute two layers."""

        size = 2

        def agree(self, number):
            return max(number, 2)

    from xtuner.apps.quickstart import built_in_model

    plan = plan_run(spec_of(str(built_in_model())), torch.device("cpu"), np.array([5]), 1, Tighter())
    assert plan is not None
    assert plan.resolved().model.recompute == 2


def test_pages_are_short_and_add_up():
    spec = spec_of(model={"quant": {"bits": 4}}, loop={"max_iters": 5000})
    plan = make_plan(spec, load_shape(LLAMA3), of_size(24), estimate_work(spec))
    lines = render_page(plan, "some").splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) <= 120
    start = next(i for i, line in enumerate(lines) if line.startswith("memory"))
    end = next(i for i, line in enumerate(lines) if line.split()[:1] == ["peak"])
    column = lines[start].index("GiB") + 3
    found = [float(re.split(r"\s+", line[:column].strip())[-1]) for line in lines[start + 1 : end + 1]]
    listed = [0 if "later" in line else value for line, value in zip(lines[start + 1 : end + 1], found, strict=True)]
    assert sum(listed[:-1]) == pytest.approx(listed[-1], abs=0.05)
    assert len(render_lines(plan)) == 2


def test_what_waits_on_the_host_must_fit_there():
    """Nothing is moved to a host that has no room for it, and the page says so when that was asked for."""
    work = Work(16384, 4096, 10)
    card = replace(of_size(25), host=64 * GIB)
    assert choose(spec_of(model={"compile": False}), load_shape(LLAMA3), card, work).recompute == "offload"
    unseen = make_plan(spec_of(model={"recompute": "offload"}), load_shape(LLAMA3), of_size(25), work)
    assert "GiB of host memory, if the machine has so much" in render_page(unseen, "x")
    full = replace(card, host=0.1 * GIB)
    assert choose(spec_of(model={"compile": False}), load_shape(LLAMA3), full, work).recompute == "layers"
    plan = make_plan(spec_of(model={"recompute": "offload"}), load_shape(LLAMA3), full, work)
    assert not plan.fits
    assert "GiB of host memory, and 0.10 are free" in render_page(plan, "x")


def test_advice_changes_what_is_learned_only_where_nothing_else_helps():
    shape, work = load_shape(LLAMA3), Work(2048, 2048, 100)
    spec = spec_of(model={"quant": {"bits": 4}})
    words, _ = find_change(spec, shape, of_size(8), work)
    assert not any(word.startswith(("data.", "model.lora")) for word in words)
    words, memory = find_change(spec, shape, of_size(6), work)
    assert any(word.startswith("model.lora.r=") for word in words)
    for word in words:  # each of them is needed
        fewer = override_spec(spec, [other for other in words if other != word])
        if word.startswith("model.lora.alpha") or word.startswith("data."):
            continue
        assert not fits(weigh_chosen(fewer, shape, of_size(6), work_of(fewer, work)), of_size(6)), word
    assert fits(memory, of_size(6))
