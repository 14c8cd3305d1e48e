"""The plan's memory and speed against measurements: recorded ones of a card, live ones of this CPU."""

import re
from pathlib import Path

import pytest
import torch

from xtuner.config.check import to_spec
from xtuner.config.spec import OptimSpec
from xtuner.engine import OPTIMISERS
from xtuner.engine.optim import build_optimiser
from xtuner.engine.plan.advice import find_change
from xtuner.engine.plan.card import GIB, Card, find_card
from xtuner.engine.plan.kept import TILE_NUMBERS, WAY_ACTIVATIONS, WAY_INPUTS
from xtuner.engine.plan.memory import CHUNK_LOGITS, MOMENT_BYTES, TRAINED_CHUNK_LOGITS, moment_bytes, weigh
from xtuner.engine.plan.plan import make_plan
from xtuner.engine.plan.probe import make_batch
from xtuner.engine.plan.render import render_page
from xtuner.engine.plan.shape import load_shape
from xtuner.engine.plan.speed import clock
from xtuner.engine.plan.work import Work, estimate_work
from xtuner.engine.precision import choose_precision
from xtuner.engine.step import train_step
from xtuner.engine.strategy.single import Single
from xtuner.model import recompute, tiled_mlp
from xtuner.model.load import load_model
from xtuner.objective.sft import SFT
from xtuner.ops import linear_cross_entropy

LLAMA3 = "meta-llama/Meta-Llama-3-8B"
NF4 = {"bits": 4}

# One H200 (139.8 GiB), November 2026, torch 2.11, transformers 5.17, bitsandbytes 0.50.2: the sizes of Llama 3 8B, LoRA
# of rank 64 on all linear layers, AdamW, one row of 2 x 4096 tokens. Allocated peak in GiB, milliseconds an iteration.
RECORDED = [
    (None, "layers", False, 20.93, 959),
    (None, "none", False, 66.12, 694),
]
CPU = Card("CPU", 64 * GIB, 1e10, 0.0, (1e10, 1e10), (1e10, 1e10), 1e10, is_cpu=True)
TINY = str(Path(linear_cross_entropy.__file__).parents[1] / "assets/tiny")


def spec_of(model, **parts):
    data = {"train": "rows.json", "max_length": 4096, "template": "default"}
    return to_spec({"model": {"path": LLAMA3, "lora": {}, **model}, "data": data, "loop": {"batch_size": 2}, **parts})


@pytest.mark.parametrize(("quant", "way", "compiled", "gib", "milliseconds"), RECORDED)
def test_recorded_runs(quant, way, compiled, gib, milliseconds):
    spec, shape, card, work = spec_of({"quant": quant}), load_shape(LLAMA3), find_card("H200"), Work(8192, 4096, 1000)
    memory = weigh(spec, shape, card, work, recompute=way, compiled=compiled)
    assert memory.peak / GIB == pytest.approx(gib, rel=0.03)
    seconds = clock(spec, shape, card, work, recompute=way, compiled=compiled).seconds
    assert seconds * 1000 == pytest.approx(milliseconds, rel=0.05)


@pytest.mark.parametrize(("quant", "gib"), [(None, 15.61), (NF4, 5.97)])
def test_recorded_models_alone(quant, gib):
    memory = weigh(
        spec_of({"quant": quant}), load_shape(LLAMA3), find_card("H200"), Work(1, 1), recompute="none", compiled=False
    )
    assert (sum(memory.frozen.values()) + memory.trained) / GIB == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize(
    ("model", "rest"),
    [
        ({"recompute": "none"}, {}),
        ({"recompute": "layers"}, {}),
        ({"recompute": "mlp"}, {}),
        ({"recompute": 2}, {}),
        ({"recompute": "none", "quant": NF4}, {}),
        ({"recompute": "none", "lora": {"dropout": 0.1, "targets": ["wqkv", "w2"]}}, {}),
        ({"recompute": "layers", "lora": None}, {}),
        ({"recompute": "none"}, {"loop": {"accumulate": 2}}),
        ({"recompute": "layers", "lora": None}, {"optim": {"in_backward": True, "max_norm": None}}),
    ],
    ids=["none", "layers", "mlp", "two", "nf4", "dropout", "full", "accumulate", "in_backward"],
)
def test_live_tensors_on_a_cpu(model, rest):
    """Every allocation of an iteration is recorded; what lives at once is what the plan says."""
    loop = {"batch_size": 1, "max_iters": 1, **rest.get("loop", {})}
    parts = {"data": {"train": "rows.json", "max_length": 384}, "optim": rest.get("optim", {}), "loop": loop}
    spec = to_spec({"model": {"path": TINY, "lora": {}, **model}, **parts})
    plan = make_plan(spec, load_shape(TINY), CPU, estimate_work(spec))
    device = torch.device("cpu")
    precision = choose_precision(spec, device)
    strategy = Single(device, precision)
    model = load_model(spec.model, device="cpu", dtype=precision.weights, train=True)
    model = strategy.place(model, lambda placed: build_optimiser(spec.optim, placed))

    def step(tokens):
        batches = [make_batch(plan, tokens)] * spec.loop.accumulate
        options = {"seed": 0, "lr": 1e-4, "max_norm": spec.optim.max_norm}
        train_step(strategy, SFT(), model, batches, first=0, after=lambda micro: None, **options)

    step(16)  # makes the moments
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(plan.work.tokens)
    recorded = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(recorded, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert sum(plan.memory.at_peak.values()) == pytest.approx(peak, rel=0.05 if spec.model.lora else 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_moments_take_what_the_plan_says(name, dtype):
    model = torch.nn.Linear(512, 512, bias=False, dtype=dtype)
    optimiser = build_optimiser(OptimSpec(name=name), model)
    model.weight.grad = torch.ones_like(model.weight)
    optimiser.step()
    held = [value for value in optimiser.state[model.weight].values() if isinstance(value, torch.Tensor)]
    size = sum(value.nbytes for value in held if value.numel() > 256)  # the table of 8-bit numbers is there once
    assert size == pytest.approx(model.weight.numel() * moment_bytes(name, dtype.itemsize), rel=1e-3)


def test_paged_moments_need_not_fit():
    """Llama 3 8B: 60 GiB of weights and gradients fit on a card of 80, 60 GiB of moments beside them do not."""
    shape, card, work = load_shape(LLAMA3), find_card("80GB"), Work(512, 512, 10)
    plans = {}
    for name in ("adamw", "paged_adamw"):
        plans[name] = make_plan(spec_of({"lora": None}, optim={"name": name}), shape, card, work)
    paged = plans["paged_adamw"].memory
    assert paged.optimiser == paged.paged == 8 * shape.num_parameters
    assert plans["adamw"].memory.need == paged.need
    assert (plans["adamw"].fits, plans["paged_adamw"].fits) == (False, True)
    assert "it fits, with moments in host memory (slowly)" in render_page(plans["paged_adamw"], "x")


def test_full_fine_tuning_is_advised_to_store_less():
    """Llama 3 8B, 16 bytes a weight; then 8 of bf16 with moments in bf16; then 6 and no gradients at a time."""
    shape, work, spec = load_shape(LLAMA3), Work(512, 512, 10), spec_of({"lora": None}, loop={})
    found = {}
    for gib in (80, 60):
        change = find_change(spec, shape, find_card(f"{gib}GB"), work)
        assert change is not None
        found[gib] = change[0]
    assert found[80] == ["optim.name=adamw_bf16", "model.dtype=bfloat16"]
    assert found[60] == [*found[80], "optim.in_backward=true", "optim.max_norm=none"]


def test_tables_are_complete():
    assert set(MOMENT_BYTES) >= set(OPTIMISERS)
    assert CHUNK_LOGITS == linear_cross_entropy.CHUNK_LOGITS


def test_kept_bytes_are_those_of_the_modules():
    """Llama 3 8B by hand: 2 norms in fp32; query, result and keys as often as queries; gate, up and silu; inputs."""
    memory = weigh(
        spec_of({}), load_shape(LLAMA3), find_card("H200"), Work(8192, 4096), recompute="none", compiled=False
    )
    hidden, inner = 4096, 14336
    norms, attention, mlp = 2 * 4 * hidden, 4 * 2 * hidden + 4 * 32, 3 * 2 * inner
    inputs, ranks = 2 * (2 * hidden + inner), 7 * 2 * 64
    assert memory.per_token == norms + attention + mlp + inputs + ranks
    assert memory.boundary == 2 * hidden


def test_offload_moves_what_is_kept_to_the_host():
    options = {"shape": load_shape(LLAMA3), "card": find_card("H200"), "work": Work(8192, 4096), "compiled": False}
    ways = ("layers", "offload_layers", "mlp", "offload")
    layers, inputs, mlp, offload = (weigh(spec_of({}), recompute=way, **options) for way in ways)
    assert inputs.host == 32 * 8192 * layers.boundary
    assert layers.peak - inputs.peak > 20 * 8192 * layers.boundary
    assert layers.host == mlp.host == 0
    assert offload.host == pytest.approx(mlp.at_peak["activations"], rel=0.02)
    assert mlp.peak - offload.peak > 20 * 8192 * layers.boundary


def test_constants_of_the_layers_are_the_same():
    assert (TILE_NUMBERS, WAY_ACTIVATIONS) == (tiled_mlp.TILE_NUMBERS, recompute.WAY_ACTIVATIONS)
    assert WAY_INPUTS == recompute.WAY_INPUTS
    assert TRAINED_CHUNK_LOGITS == linear_cross_entropy.TRAINED_CHUNK_LOGITS


def test_full_fine_tuning_counts_weights_gradients_and_moments():
    spec = spec_of({"lora": None})
    shape = load_shape(LLAMA3)
    memory = weigh(spec, shape, find_card("H200"), Work(2048, 2048), recompute="layers", compiled=False)
    assert memory.frozen == {}
    assert (memory.trained, memory.optimiser) == (4 * shape.num_parameters, 8 * shape.num_parameters)
    assert memory.peak > 16 * shape.num_parameters  # gradients are as large as the weights
    half = weigh(
        spec_of({"lora": None, "dtype": "bfloat16"}), shape, find_card("H200"), Work(1, 1), recompute="none",
        compiled=False,
    )  # fmt: skip
    assert half.optimiser == 4 * shape.num_parameters


def test_recorded_rows_name_their_origin():
    """A table of measurements without date and versions is worth nothing."""
    text = Path(__file__).read_text("utf-8")
    assert re.search(r"# One H200 .*20\d\d, torch \d", text)
