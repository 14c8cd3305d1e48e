"""The plan's memory and speed against measurements: recorded ones of a card, live ones of this CPU."""

import re
from pathlib import Path

import pytest
import torch

from xtuner.config.check import to_spec
from xtuner.engine import OPTIMISERS
from xtuner.engine.optim import build_optimiser
from xtuner.engine.plan.card import GIB, Card, find_card
from xtuner.engine.plan.memory import CHUNK_LOGITS, MOMENT_BYTES, weigh
from xtuner.engine.plan.plan import make_plan
from xtuner.engine.plan.probe import make_batch
from xtuner.engine.plan.shape import load_shape
from xtuner.engine.plan.speed import clock
from xtuner.engine.plan.work import Work, estimate_work
from xtuner.engine.precision import choose_precision
from xtuner.engine.step import train_step
from xtuner.engine.strategy.single import Single
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
    (None, "none", True, 55.2, 581),
    (None, "layers", True, 20.5, 831),
    (NF4, "none", True, 45.5, 602),
]
CPU = Card("CPU", 64 * GIB, 1e10, 0.0, (1e10, 1e10), 1e10, is_cpu=True)
TINY = str(Path(linear_cross_entropy.__file__).parents[1] / "assets/tiny")


def spec_of(model, **parts):
    data = {"train": "rows.json", "max_length": 4096, "template": "default"}
    return to_spec({"model": {"path": LLAMA3, "lora": {}, **model}, "data": data, "loop": {"batch_size": 2}, **parts})


@pytest.mark.parametrize(("quant", "recompute", "compiled", "gib", "milliseconds"), RECORDED)
def test_recorded_runs(quant, recompute, compiled, gib, milliseconds):
    spec, shape, card, work = spec_of({"quant": quant}), load_shape(LLAMA3), find_card("H200"), Work(8192, 4096, 1000)
    memory = weigh(spec, shape, card, work, recompute=recompute, compiled=compiled)
    assert memory.peak / GIB == pytest.approx(gib, rel=0.03)
    seconds = clock(spec, shape, card, work, recompute=recompute, compiled=compiled).seconds
    assert seconds * 1000 == pytest.approx(milliseconds, rel=0.05)


@pytest.mark.parametrize(("quant", "gib"), [(None, 15.61), (NF4, 5.97)])
def test_recorded_models_alone(quant, gib):
    memory = weigh(
        spec_of({"quant": quant}), load_shape(LLAMA3), find_card("H200"), Work(1, 1), recompute="none", compiled=False
    )
    assert (sum(memory.frozen.values()) + memory.trained) / GIB == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize(
    ("model", "loop"),
    [
        ({"recompute": "none"}, {}),
        ({"recompute": "layers"}, {}),
        ({"recompute": 2}, {}),
        ({"recompute": "none", "quant": NF4}, {}),
        ({"recompute": "none", "lora": {"dropout": 0.1, "targets": ["wqkv", "w2"]}}, {}),
        ({"recompute": "layers", "lora": None}, {}),
        ({"recompute": "none"}, {"accumulate": 2}),
    ],
    ids=["none", "layers", "two", "nf4", "dropout", "full", "accumulate"],
)
def test_live_tensors_on_a_cpu(model, loop):
    """Every allocation of an iteration is recorded; what lives at once is what the plan says."""
    parts = {"data": {"train": "rows.json", "max_length": 384}, "loop": {"batch_size": 1, "max_iters": 1, **loop}}
    spec = to_spec({"model": {"path": TINY, "lora": {}, **model}, **parts})
    plan = make_plan(spec, load_shape(TINY), CPU, estimate_work(spec))
    device = torch.device("cpu")
    precision = choose_precision(spec, device)
    strategy = Single(device, precision)
    model = load_model(spec.model, device="cpu", dtype=precision.weights, train=True)
    model = strategy.place(model, lambda placed: build_optimiser(spec.optim, placed))

    def step(tokens):
        batches = [make_batch(plan, tokens)] * spec.loop.accumulate
        options = {"seed": 0, "lr": 1e-4, "max_norm": 1.0}
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


def test_offload_moves_the_inputs_to_the_host():
    options = {"shape": load_shape(LLAMA3), "card": find_card("H200"), "work": Work(8192, 4096), "compiled": False}
    layers = weigh(spec_of({}), recompute="layers", **options)
    offload = weigh(spec_of({}), recompute="offload", **options)
    assert offload.host == 32 * 8192 * layers.boundary
    assert layers.peak - offload.peak > 20 * 8192 * layers.boundary
    assert layers.host == 0


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
