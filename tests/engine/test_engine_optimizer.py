"""Optimisers: rounding by chance, steps inside the backward pass, moments that bitsandbytes stores."""

import copy
import math

import pytest
import torch
from engine_fakes import Next, TinyModel, make_batch, make_run, make_segments

from xtuner.checkpoint.state import load_state, save_state
from xtuner.config.check import to_spec
from xtuner.config.spec import OptimSpec
from xtuner.config.spec_override import override_spec
from xtuner.engine.adamw_bf16 import AdamWBf16
from xtuner.engine.adamw_stored import StoredAdamW
from xtuner.engine.loop import run_loop
from xtuner.engine.optim import build_optimiser, check_optimiser
from xtuner.engine.precision import Precision
from xtuner.engine.resume import read_meta, restore
from xtuner.engine.step import train_step
from xtuner.engine.strategy.single import Single
from xtuner.errors import UserError
from xtuner.ops import adamw
from xtuner.ops.adamw import adamw_step
from xtuner.ops.pace import Pace
from xtuner.ops.stochastic import more_bits, random_bits, random_keys, round_by_chance

CPU = torch.device("cpu")
FREE = {"max_norm": None, "in_backward": True}


def numbers_of(tensors):
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])


def spec_of(**parts):
    return to_spec({"model": {"path": "m"}, "data": {"train": "x.json"}, **parts})


def mix_by_hand(number):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        number ^= number >> shift
        number = number * factor % 2**32
    return number ^ number >> 16


def test_random_bits_are_those_of_whole_numbers():
    keys = random_keys(1, 2, 3)
    one, two = (key % 2**32 for key in keys)
    expected = [mix_by_hand(mix_by_hand((place + one) % 2**32) ^ two) for place in range(5, 300)]
    found = random_bits(5, 295, keys, CPU)
    assert [bits % 2**32 for bits in found.tolist()] == expected
    further = [mix_by_hand((bits + 0x9E3779B9) % 2**32) for bits in expected]
    assert [bits % 2**32 for bits in more_bits(found).tolist()] == further


def test_keys_hang_on_all_they_are_made_of():
    asked = [(seed, step, number) for seed in range(5) for step in range(5) for number in range(5)]
    assert len({random_keys(*each) for each in asked}) == 125
    # from `printf "0 1 2" | b2sum -l 64`: checkpoints go on with what was drawn before them
    assert random_keys(0, 1, 2) == (-554293266, -1083902472)


def test_rounding_is_right_on_average_and_to_a_neighbour():
    value = 1 + 0.3 / 128  # between two bf16 numbers that are 1/128 apart
    found = round_by_chance(torch.full((200_000,), value), random_bits(0, 200_000, (1, 2), CPU)).float()
    assert found.unique().tolist() == [1.0, 1 + 1 / 128]
    assert found.mean().item() == pytest.approx(value, abs=4e-5)
    down = round_by_chance(torch.full((200_000,), -value), random_bits(0, 200_000, (1, 2), CPU)).float()
    assert torch.equal(down, -found)


def test_what_bf16_holds_is_not_rounded():
    kept = torch.tensor([0.0, -0.0, 1.5, -3e38, float("inf"), -float("inf"), float("nan")]).bfloat16().float()
    for seed in range(20):
        assert torch.equal(
            round_by_chance(kept, random_bits(seed, len(kept), (seed, 7), CPU)).view(torch.int16),
            kept.bfloat16().view(torch.int16),
        )
    quiet = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)  # all bits set: a carry away from 0
    assert round_by_chance(quiet, torch.full((2,), 0xFFFF, dtype=torch.int32)).isnan().all()


def test_a_cut_into_chunks_changes_nothing(monkeypatch):
    def run():
        generator = torch.Generator().manual_seed(0)
        weight, grad = (torch.randn(3, 7, generator=generator).bfloat16() for _ in range(2))
        moments = torch.zeros(2, 3, 7, dtype=torch.bfloat16)
        adamw_step(weight, grad, *moments, Pace.of(1, 0.1, (0.9, 0.99), 1e-8, 0.1), (3, 4))
        return torch.stack([weight, *moments])

    whole = run()
    monkeypatch.setattr(adamw, "CHUNK", 4)
    assert torch.equal(run(), whole)


def test_a_weight_that_does_not_lie_in_a_row_moves_the_same():
    weight, grad = torch.randn(6, 4), torch.randn(6, 4)
    turned = weight.t().contiguous().t()
    moments = [torch.zeros(2, 6, 4, dtype=torch.bfloat16) for _ in range(2)]
    for each, (first, second) in zip((weight, turned), moments, strict=True):
        adamw_step(each, grad, first, second, Pace.of(1, 0.1, (0.9, 0.99), 1e-8, 0.0), (3, 4))
    assert not turned.is_contiguous()
    assert torch.equal(turned, weight)


def test_fp32_weights_follow_plain_adamw():
    """Moments in bf16 change each step by 2 % or so, and none of it adds up."""
    torch.manual_seed(0)
    ours, plain = (torch.nn.Parameter(torch.ones(64, 64)) for _ in range(2))
    optimiser = AdamWBf16([{"params": [ours], "weight_decay": 0.1}], lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    twin = torch.optim.AdamW([plain], lr=1e-2, weight_decay=0.1)
    for _ in range(200):
        ours.grad = torch.randn(64, 64) + 0.5
        plain.grad = ours.grad.clone()
        optimiser.step()
        twin.step()
    way, error = plain.detach() - 1, (ours - plain).detach()
    assert way.mean().item() < -0.5
    assert error.abs().max() < 0.1 * way.abs().mean()
    assert abs(error.mean()) < 0.003 * way.abs().mean()


def test_bf16_weights_move_where_rounding_to_the_nearest_stands_still():
    """200 steps of 1e-5 from 1.0, whose neighbours are 4e-3 and 8e-3 away."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.nn.Parameter(torch.ones(256, 256)) for name in ("fp32", "near", "chance")}
    for name in ("near", "chance"):
        weights[name].data = weights[name].data.bfloat16()
    options = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8}
    optimisers = {
        "fp32": torch.optim.AdamW([weights["fp32"]], weight_decay=0.0, **options),
        "near": torch.optim.AdamW([weights["near"]], weight_decay=0.0, **options),
        "chance": AdamWBf16([{"params": [weights["chance"]]}], **options),
    }
    for _ in range(200):
        grad = 1 + 0.1 * torch.randn(256, 256, generator=generator)
        for name, weight in weights.items():
            weight.grad = grad.to(weight.dtype)
            optimisers[name].step()
    moved = {name: float(weight.detach().double().mean() - 1) for name, weight in weights.items()}
    assert moved["near"] == 0.0
    assert moved["fp32"] == pytest.approx(-2e-3, rel=0.02)
    assert moved["chance"] == pytest.approx(moved["fp32"], rel=0.03)
    state = optimisers["chance"].state[weights["chance"]]
    assert {name: state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {
        "exp_avg": torch.bfloat16,
        "exp_avg_sq": torch.bfloat16,
    }


def test_the_second_moment_forgets():
    """Its decay, a thousandth, is under half a step of bf16: rounded to the nearest it would stay for ever."""
    weight = torch.nn.Parameter(torch.zeros(4096))
    optimiser = AdamWBf16([{"params": [weight]}], lr=0.0, betas=(0.9, 0.999), eps=1e-8)
    for step in range(401):
        weight.grad = torch.full((4096,), 1.0 if step == 0 else 0.0)
        optimiser.step()
    mean = optimiser.state[weight]["exp_avg_sq"].double().mean().item()
    assert mean == pytest.approx(1e-3 * 0.999**400, rel=0.02)


def test_the_seed_decides_and_a_sum_of_steps_can_be_cut(tmp_path):
    def run(seed, cut=None, model=None):
        torch.manual_seed(0)
        model = TinyModel().bfloat16()
        optimiser = build_optimiser(OptimSpec(name="adamw_bf16", lr=1e-3), model, seed)
        for step in range(6):
            if step == cut:
                save_state(tmp_path / "x.pth", {"optimizer": optimiser.state_dict(), "state_dict": model.state_dict()})
                state = load_state(tmp_path / "x.pth")
                model = TinyModel().bfloat16()
                model.load_state_dict(dict(state["state_dict"]))
                optimiser = build_optimiser(OptimSpec(name="adamw_bf16", lr=1e-3), model, seed)
                optimiser.load_state_dict(state["optimizer"])
            loss = Next()(model, make_batch(make_segments(4, seed=step))).total
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        return numbers_of(model.parameters())

    whole = run(1)
    assert torch.equal(run(1), whole)
    assert torch.equal(run(1, cut=3), whole)
    assert not torch.equal(run(2), whole)


@pytest.mark.parametrize("name", ["adamw", "adamw_bf16", "adamw_8bit", "sgd"])
@pytest.mark.parametrize("cut", [False, True])
def test_steps_inside_the_backward_pass_are_those_after_it(name, cut, tmp_path):
    """Bit for bit, and the files of one go on with the other."""

    def go(folder, in_backward, resume=None):
        optim = {"name": name, "lr": 1e-2, "weight_decay": 0.1, "max_norm": None, "in_backward": in_backward}
        torch.manual_seed(0)
        run = make_run(folder, module=TinyModel(dropout=0.2, width=400), optim=optim, checkpoint={"every": 3})
        if resume:
            restore(run, resume, read_meta(run.strategy, resume))
        run_loop(run)
        return numbers_of(run.model.parameters())

    plain = go(tmp_path / "plain", False)
    found = go(tmp_path / "cut", True, tmp_path / "plain" / "iter_3.pth") if cut else go(tmp_path / "whole", True)
    assert torch.equal(found, plain)


def test_gradients_never_exist_together():
    model = TinyModel(width=64)
    strategy = Single(CPU, Precision(torch.float32, torch.float32, ""))
    strategy.place(model, lambda placed: build_optimiser(OptimSpec(lr=0.1, **FREE), placed))
    alive = []
    for parameter in model.parameters():  # after the hook that steps
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in model.parameters()))
        )
    before = numbers_of(model.parameters())
    batch = make_batch(make_segments(4))
    train_step(strategy, Next(), model, [batch], first=0, seed=0, lr=0.1, max_norm=None, after=lambda micro: None)
    assert alive == [0] * 5
    assert (numbers_of(model.parameters()) != before).any()


def test_the_learning_rate_is_that_of_the_iteration(tmp_path):
    """Not that of the one before: the weights move in the middle of it."""
    optim = {"name": "sgd", "lr": 0.5, "betas": (0.0, 0.999), **FREE}
    run = make_run(tmp_path, module=TinyModel(), optim=optim, schedule={"warmup_iters": 3}, loop={"max_iters": 1})
    assert run.schedule.lr(0) < 0.1
    before = copy.deepcopy(run.model)
    run_loop(run)
    batch = run.batch(0)
    loss = Next()(before, batch)
    (loss.total / loss.weight).backward()
    for parameter, moved in zip(before.parameters(), run.model.parameters(), strict=True):
        assert torch.allclose(parameter - run.schedule.lr(0) * parameter.grad, moved, atol=1e-7)


class Sick(Next):
    """Its loss is nan from some call on."""

    def __init__(self, healthy):
        self.healthy = healthy

    def __call__(self, model, batch):
        self.healthy -= 1
        loss = super().__call__(model, batch)
        return loss if self.healthy >= 0 else type(loss)(loss.total * math.nan, loss.weight)


def test_nan_ends_the_run_and_is_not_saved(tmp_path):
    run = make_run(tmp_path, optim=FREE, checkpoint={"every": 2}, loop={"max_iters": 6})
    run.objective = Sick(healthy=4)
    with pytest.raises(UserError, match=r"loss became nan at iteration 5.*") as caught:
        run_loop(run)
    assert "iter_4.pth, is intact" in caught.value.fix
    assert all(tensor.isfinite().all() for tensor in load_state(tmp_path / "iter_4.pth")["state_dict"].values())
    assert not (tmp_path / "iter_5.pth").exists()


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["optim.in_backward=true"], "norm of all gradients", "Set optim.max_norm=none, or leave it out."),
        (["in_backward=true", "max_norm=none", "accumulate=2"], "other iterations", "loop.accumulate=1"),
        (["in_backward=true", "max_norm=none", "skip_spikes=true"], "spike", "loop.skip_spikes=false"),
    ],
)
def test_what_needs_all_gradients_is_refused(words, what, fix):
    with pytest.raises(UserError, match=what) as caught:
        override_spec(spec_of(), words)
    assert fix in caught.value.fix
    assert caught.value.what.startswith("optim.in_backward moves weights before")


def test_where_nothing_can_be_refused_by_the_spec_alone():
    spec = spec_of(optim=FREE)
    check_optimiser(spec, 1, scaled=False)
    with pytest.raises(UserError, match="before other processes"):
        check_optimiser(spec, 2, scaled=False)
    with pytest.raises(UserError, match="float16"):
        check_optimiser(spec, 1, scaled=True)
    with pytest.raises(UserError, match="before other processes"):
        check_optimiser(spec_of(optim=FREE, strategy="fsdp"), 1, scaled=False)
    with pytest.raises(UserError, match="copy of the weights in float32"):
        check_optimiser(spec_of(optim={"name": "adamw_bf16"}, strategy="deepspeed"), 1, scaled=False)
    with pytest.raises(UserError, match=r"float16.") as caught:
        build_optimiser(OptimSpec(name="adamw_bf16"), TinyModel().half())
    assert "model.dtype=bfloat16" in caught.value.fix


def test_bf16_weights_under_another_optimiser_are_talked_about(caplog):
    build_optimiser(OptimSpec(), TinyModel())
    build_optimiser(OptimSpec(name="adamw_bf16"), TinyModel().bfloat16())
    assert "bfloat16" not in caplog.text
    build_optimiser(OptimSpec(), TinyModel().bfloat16())
    assert "optim.name=adamw_bf16 rounds so that nothing is lost" in caplog.text


def test_paged_on_a_cpu_is_said_in_words(caplog):
    with caplog.at_level("INFO"):
        optimiser = build_optimiser(OptimSpec(name="paged_adamw_8bit"), TinyModel())
    assert "a CPU has no card to page from" in caplog.text
    assert not optimiser.is_paged


class Paged(StoredAdamW):
    """Marks what would lie in memory that a card and the host share."""

    def get_state_buffer(self, p, dtype=torch.float32):
        buffer = torch.zeros_like(p, dtype=dtype)
        buffer.is_paged = True
        return buffer

    def prefetch_state(self, p):
        assert all(self.state[p][name].is_paged for name in ("state1", "state2"))


@pytest.mark.parametrize("bits", [8, 32])
def test_paged_moments_are_paged_after_a_resume(bits, tmp_path):
    def make():
        weight = torch.nn.Parameter(torch.linspace(0, 1, 5000))
        return weight, Paged([weight], lr=0.1, optim_bits=bits, is_paged=True)

    def step(weight, optimiser):
        weight.grad = torch.cos(torch.arange(5000.0))
        optimiser.step()

    weight, optimiser = make()
    step(weight, optimiser)
    save_state(tmp_path / "x.pth", {"optimizer": optimiser.state_dict(), "weight": weight.detach()})
    state = load_state(tmp_path / "x.pth")
    twin, later = make()
    twin.data.copy_(state["weight"])
    later.load_state_dict(state["optimizer"])
    assert later.state[twin]["state1"].dtype == (torch.uint8 if bits == 8 else torch.float32)
    for each in ((weight, optimiser), (twin, later)):
        step(*each)
    assert torch.equal(twin, weight)
