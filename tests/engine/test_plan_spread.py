"""What several cards hold of a run, by hand: the 16 bytes a weight of full fine-tuning, and what is divided of them."""

import pytest

from xtuner.cli.main import main
from xtuner.cli.spread import read_deepspeed
from xtuner.config.check import to_spec
from xtuner.engine.plan.card import GIB, find_cards
from xtuner.engine.plan.check import check_plan
from xtuner.engine.plan.choose import list_ways
from xtuner.engine.plan.memory import weigh
from xtuner.engine.plan.plan import make_plan
from xtuner.engine.plan.render import render_lines, render_page
from xtuner.engine.plan.shape import load_shape
from xtuner.engine.plan.spread import spread_of, zero_stage
from xtuner.engine.plan.work import Work, row_of
from xtuner.errors import UserError

LLAMA3 = "meta-llama/Meta-Llama-3-8B"
SHAPE = load_shape(LLAMA3)
N = SHAPE.num_parameters


def zero(stage):
    return {"name": "deepspeed", "config": read_deepspeed(f"deepspeed_zero{stage}")}


def spec_of(strategy, lora=None, **parts):
    model = {"path": LLAMA3, "lora": lora, **parts.pop("model", {})}
    return to_spec({"model": model, "data": {"train": "r.json", "template": "default"}, "strategy": strategy, **parts})


def weigh_on(cards, spec):
    return weigh(spec, SHAPE, find_cards(f"{cards}xA100-80G"), Work(512, 512), recompute="layers", compiled=False)


# bytes of a trained weight, its gradient and its moments on each of 8 cards: fp32 of FSDP, 16 bits beside fp32 of ZeRO
@pytest.mark.parametrize(
    ("strategy", "weight", "gradient", "moments"),
    [
        ("ddp", 4, 4, 8),
        ("fsdp", 4 / 8, 4 / 8, 8 / 8),
        (zero(1), 2, 2, 12 / 8),
        (zero(2), 2, 2 / 8, 12 / 8),
        (zero(3), 2 / 8, 2 / 8, 12 / 8),
    ],
    ids=["ddp", "fsdp", "zero1", "zero2", "zero3"],
)
def test_parts_of_full_fine_tuning(strategy, weight, gradient, moments):
    memory = weigh_on(8, spec_of(strategy))
    assert memory.trained == pytest.approx(weight * N)
    assert memory.gradients == pytest.approx(gradient * N)
    assert memory.optimiser == pytest.approx(moments * N)


def test_frozen_weights_are_divided_unless_they_are_quantised():
    plain, packed = spec_of("fsdp", {}), spec_of("fsdp", {}, model={"quant": {"bits": 4}})
    assert weigh_on(4, plain).frozen["bfloat16"] == 2 * N / 4
    one, four = weigh_on(1, packed).frozen, weigh_on(4, packed).frozen
    assert (four["NF4"], four["bfloat16"]) == (one["NF4"], one["bfloat16"] / 4)
    three = weigh_on(4, spec_of(zero(3), {}, model={"quant": {"bits": 4}})).frozen
    assert three["NF4"] == one["NF4"] / 4


def test_layers_that_compute_are_whole():
    """FSDP2: embedding and head, two layers in bf16; the gradients of a layer in fp32, and as they are sent."""
    layer, ends = 218_103_808, 2 * 128256 * 4096
    assert weigh_on(8, spec_of("fsdp")).at_peak["together"] == pytest.approx(
        2 * (2 * layer + ends) + 8 * layer, rel=0.01
    )
    assert weigh_on(8, spec_of(zero(3))).at_peak["together"] == 2 * 1e9


def test_gradients_that_add_up_are_whole_under_fsdp():
    once, often = (weigh_on(8, spec_of("fsdp", loop={"accumulate": count})).gradients for count in (1, 4))
    assert once == pytest.approx(often / 8)


def test_what_is_offloaded_waits_on_the_host():
    memory = weigh_on(8, spec_of({"name": "fsdp", "offload": True}))
    assert (memory.trained, memory.optimiser, memory.gradients) == (0, 0, 0)
    assert memory.host == pytest.approx(16 * N / 8)
    memory = weigh_on(8, spec_of({"name": "deepspeed", "config": read_deepspeed("deepspeed_zero2_offload")}))
    assert (memory.trained, memory.optimiser) == (2 * N, 0)
    assert memory.host == pytest.approx((12 + 2) * N / 8)


def test_buffers_of_deepspeed_are_whole_however_little_is_sent():
    assert weigh_on(2, spec_of(zero(2), {})).at_peak["messages"] == 2 * 2 * 5e8
    assert "messages" not in weigh_on(2, spec_of("ddp", {})).at_peak


def test_one_card_holds_what_it_held():
    for strategy in ("auto", "single"):
        assert weigh_on(1, spec_of(strategy, {})) == weigh_on(1, spec_of("auto", {}))


def test_cards_that_share_a_row_have_a_part_of_its_tokens():
    spec = spec_of({"name": "ddp", "sequence_parallel_size": 4}, {}, loop={"batch_size": 2})
    assert row_of(spec) == (2 * 2048 // 4, 2048)
    with pytest.raises(UserError, match="sequence_parallel_size is 4, and there are 6 cards"):
        check_plan(spec, SHAPE, find_cards("6xH200"))


def test_cards_share_rows_and_the_checkpoint_is_whole():
    spec = spec_of("fsdp", {}, loop={"max_iters": 10})
    one, eight = (make_plan(spec, SHAPE, find_cards(word), Work(2048, 2048, 10)) for word in ("H200", "8xH200"))
    assert eight.tokens_per_second == pytest.approx(8 * one.tokens_per_second, rel=0.01)
    assert eight.disk == one.disk


def test_the_page_says_what_is_divided():
    spec = spec_of(zero(3), {})
    plan = make_plan(spec, SHAPE, find_cards("4xH200"), Work(2048, 2048, 10))
    page = render_page(plan, "some")
    for part in ("on 4 x H200", "each card holds 1/4 of optimiser, gradients and weights (ZeRO-3)", "on each card"):
        assert part in page
    assert "adapter, bfloat16" in page  # DeepSpeed's 16 bits; their fp32 copies are the optimiser's
    assert "GiB of 139.8 on each" in render_lines(plan)[0]


def test_stages_and_their_ways():
    assert [zero_stage(spec_of(zero(stage))) for stage in (1, 2, 3)] == [1, 2, 3]
    assert zero_stage(spec_of("fsdp")) == 0
    assert "mlp" not in list_ways(spec_of(zero(3)), SHAPE, find_cards("H200"))
    assert spread_of(spec_of("auto"), 1).words == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strategy", "potato"], "no strategy called potato"),
        (["--strategy", "single"], "strategy=single is one process"),
        (["--strategy", "ddp", "--deepspeed", "deepspeed_zero2"], "Both --strategy and --deepspeed"),
        (["--strategy", "fsdp", "optim.name=paged_adamw"], "does not know sharded weights"),
        (["--deepspeed", "deepspeed_zero2", "optim.name=adamw_bf16"], "is there to save"),
        (["optim.name=lion"], "no optimiser called lion"),
        (["data.template=potato"], "no chat template called potato"),
        (["model.lora.targets=[nothing]"], "names no layer of this model"),
        (["model.lora=null", "model.quant.bits=4"], "Quantised weights cannot be trained"),
        (["--probe"], "--probe runs here"),
    ],
)
def test_what_a_run_refuses_a_plan_refuses(words, said, capsys):
    assert main(["plan", "llama3_8b_instruct_full_alpaca_e3", "--gpu", "2xH200", "model.lora.r=8", *words]) in (1, 2)
    assert said in capsys.readouterr().err


def test_the_variables_of_train_count(monkeypatch, capsys):
    monkeypatch.setenv("NPROC_PER_NODE", "4")
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("PORT", "29500")
    words = ["plan", "llama3_8b_instruct_full_alpaca_e3", "--strategy", "fsdp", "--gpu"]
    main([*words, "H200"])
    assert "8 x H200" in capsys.readouterr().out
    assert main([*words, "4xH200"]) == 2
    assert "--gpu says 4 cards, NPROC_PER_NODE and NNODES say 8" in capsys.readouterr().err


def test_a_model_tied_to_its_embedding_keeps_it_on_the_card():
    shape, card = load_shape("Qwen/Qwen1.5-0.5B"), find_cards("8GB")
    assert card.memory < 8 * GIB
    for model in ({"host_embedding": True}, {"quant": {"bits": 4, "head": True}}):
        with pytest.raises(UserError, match="output head"):
            check_plan(spec_of("auto", {}, model=model), shape, card)
