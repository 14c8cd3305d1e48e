"""Runs on 2 and 4 cards, started as people start them, against the same runs on one card; resumes, and a killed rank.

Type: python -m pytest -o addopts= tests/gpu/test_strategy_gpu.py
"""

import importlib.util
import json
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))
from strategy_fakes import DDP, FSDP, HERE, SHARDED_ULYSSES, STEPS, TEXTS, ULYSSES, per_step, spec, type_train
from tiny import make_tiny_internlm2

from xtuner.checkpoint.run_record import read_run
from xtuner.checkpoint.state import load_weights

CARDS = torch.cuda.device_count()
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
EXACT = 1e-4
"""Relative: in float32 only the order of sums differs, which AdamW lets grow over the steps."""
HALF = 2e-2
"""Relative, in bfloat16: a number has 8 bits."""
AT_ONCE = 5
"""Runs that are started side by side: most of their time is start-up."""
pytestmark = pytest.mark.skipif(CARDS < 2, reason="needs two CUDA cards")


@dataclass(frozen=True)
class Case:
    """A run of `cards`, each with `batch` x `accumulate` rows a step; `like`: the run that has the same losses."""

    like: str
    cards: int
    batch: int
    accumulate: int
    strategy: dict | str
    """A choice of the spec, or a name for --deepspeed."""
    goes_on: str = ""
    """The run from whose tenth step it goes on."""
    noise: float = EXACT
    parts: dict = field(default_factory=dict)


FOUR_BIT, SHORT = {"quant": {"bits": 4}}, {"precision": "bfloat16"}
ALONE = {
    "lora": Case("", 1, 4, 1, {"name": "single"}),
    "full": Case("", 1, 4, 1, {"name": "single"}),
    "qlora": Case("", 1, 4, 1, {"name": "single"}, parts=FOUR_BIT),
    "lora_short": Case("", 1, 4, 1, {"name": "single"}, parts=SHORT),
    "full_short": Case("", 1, 4, 1, {"name": "single"}, parts=SHORT),
}
SPREAD = {
    "lora_ddp": Case("lora", 2, 1, 2, DDP),
    "full_ddp": Case("full", 2, 2, 1, DDP, parts={"recompute": "layers"}),
    "lora_fsdp": Case("lora", 2, 2, 1, FSDP, parts={"recompute": "layers"}),
    "full_fsdp": Case("full", 2, 1, 2, FSDP),
    "full_fsdp_offload": Case("full", 2, 2, 1, {"name": "fsdp", "options": {"offload": True}}),
    "qlora_ddp": Case("qlora", 2, 2, 1, DDP, parts=FOUR_BIT),
    "qlora_fsdp": Case("qlora", 2, 1, 2, FSDP, parts=FOUR_BIT),
    "full_short_fsdp": Case("full_short", 2, 2, 1, FSDP, noise=HALF, parts=SHORT),
    "lora_short_ddp": Case("lora_short", 2, 2, 1, DDP, noise=HALF, parts=SHORT),
    "lora_ulysses": Case("lora", 2, 2, 2, ULYSSES),
    "full_ulysses": Case("full", 2, 4, 1, SHARDED_ULYSSES),
    "full_zero2": Case("full", 2, 1, 2, "deepspeed_zero2"),
    "lora_zero2": Case("lora", 2, 2, 1, "deepspeed_zero2"),
    "full_zero3": Case("full", 2, 2, 1, "deepspeed_zero3"),
    "lora_zero3": Case("lora", 2, 1, 2, "deepspeed_zero3"),
    "qlora_zero3": Case("qlora", 2, 2, 1, "deepspeed_zero3", parts=FOUR_BIT),
    "full_short_zero2": Case("full_short", 2, 2, 1, "deepspeed_zero2", noise=HALF, parts=SHORT),
    "lora_ddp_4": Case("lora", 4, 1, 1, DDP),
    "full_fsdp_4": Case("full", 4, 1, 1, FSDP),
    "lora_ulysses_4": Case("lora", 4, 4, 1, {"name": "ddp", "options": {"sequence_parallel_size": 4}}),
    "full_ulysses_2x2": Case("full", 4, 2, 1, SHARDED_ULYSSES),
    "full_zero3_4": Case("full", 4, 1, 1, "deepspeed_zero3"),
}
RESUMED = {
    "lora_ddp_again": Case("lora_ddp", 2, 1, 2, DDP, "lora_ddp"),
    "lora_ddp_on_one": Case("lora_ddp", 1, 1, 4, {"name": "single"}, "lora_ddp"),
    "full_fsdp_again": Case("full_fsdp", 2, 1, 2, FSDP, "full_fsdp"),
    "full_fsdp_on_one": Case("full_fsdp", 1, 1, 4, FSDP, "full_fsdp"),
    "full_zero2_again": Case("full_zero2", 2, 1, 2, "deepspeed_zero2", "full_zero2"),
    "full_zero3_again": Case("full_zero3", 2, 2, 1, "deepspeed_zero3", "full_zero3"),
    "full_fsdp_on_four": Case("full_fsdp", 4, 1, 1, FSDP, "full_fsdp"),
    "full_fsdp_from_four": Case("full_fsdp_4", 2, 1, 2, FSDP, "full_fsdp_4"),
}


def possible(cases: dict[str, Case]) -> dict[str, Case]:
    return {
        name: case
        for name, case in cases.items()
        if max(case.cards, SPREAD[case.goes_on].cards if case.goes_on else 0) <= CARDS
        and (HAS_DEEPSPEED or isinstance(case.strategy, dict))
    }


def start(folder: Path, name: str, case: Case) -> tuple[int, str]:
    """Type the run and wait; returns exit code and what was said."""
    values = spec(folder, name, lora="lora" in name, batch=case.batch, accumulate=case.accumulate, **case.parts)
    words = []
    if isinstance(case.strategy, str):
        words += ["--deepspeed", case.strategy]
    else:
        values["strategy"] = case.strategy
    if case.goes_on:
        before = SPREAD[case.goes_on]
        words += ["--resume", str(folder / case.goes_on / f"iter_{STEPS // 2 * before.accumulate}.pth")]
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(values))
    process = type_train(config, *words, size=case.cards)
    try:
        said = process.communicate(timeout=240)[0]
    finally:
        process.kill()
    return process.returncode, said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    make_tiny_internlm2(folder / "model")
    (folder / "data.json").write_text(json.dumps(TEXTS))
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    """All runs: name -> (exit code, what was said)."""
    found: dict[str, tuple[int, str]] = {"lora": start(folder, "lora", ALONE["lora"])}  # it prepares the data
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for wave in (ALONE | SPREAD, RESUMED):
            names = {name: case for name, case in possible(wave).items() if name not in found}
            found |= zip(names, threads.map(lambda item: start(folder, *item), names.items()), strict=True)
    return found


def losses_of(folder: Path, ended: dict, name: str) -> torch.Tensor:
    if name not in ended:
        pytest.skip(f"needs DeepSpeed, or more than {CARDS} cards")
    code, said = ended[name]
    assert code == 0, said[-3000:]
    return per_step(folder / name)


@pytest.mark.parametrize("name", SPREAD)
def test_losses_are_those_of_one_card(folder, ended, name):
    case = SPREAD[name]
    found, expected = losses_of(folder, ended, name), losses_of(folder, ended, case.like)
    assert len(expected) == STEPS
    assert expected[0] - expected[-1] > 0.5  # it learns something
    torch.testing.assert_close(found, expected, rtol=case.noise, atol=0)


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_has_the_losses_of_the_one_that_was_not_stopped(folder, ended, name):
    found = losses_of(folder, ended, name)
    expected = per_step(folder / RESUMED[name].like)[STEPS // 2 :]
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=0)


@pytest.mark.parametrize("name", ["lora_ddp", "full_fsdp", "full_zero2", "full_zero3", "qlora_fsdp"])
def test_what_is_saved_is_what_one_card_learned(folder, ended, name):
    """A file, a folder of FSDP, and folders of ZeRO."""
    losses_of(folder, ended, name)
    case = SPREAD[name]
    found = load_weights(folder / name / f"iter_{STEPS * case.accumulate}.pth")
    expected = load_weights(folder / case.like / f"iter_{STEPS}.pth")
    assert set(found) == set(expected)
    for key, weight in expected.items():
        torch.testing.assert_close(found[key].float(), weight.float(), rtol=1e-2, atol=2e-3)


def test_frozen_4_bit_weights_are_compared_with_their_checksum(ended):
    if ended["qlora_fsdp"][0] == 0:
        assert "quantised weights stay whole on every card" in ended["qlora_fsdp"][1]


@pytest.mark.parametrize("strategy", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_a_killed_rank_stops_the_others(folder, strategy):
    """While the others wait for it on the card."""
    name = f"killed_{strategy['name']}"
    values = spec(folder, name, lora=True, batch=1, accumulate=1, strategy=strategy, every=2)
    values["loop"]["max_iters"] = 100_000
    values["callbacks"] = [{"name": f"{HERE}/strategy_fault.py:Fault", "options": {"what": "kill"}}]
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(values))
    process = type_train(config)
    while not (folder / name / "iter_2.pth").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    began = time.monotonic()
    said = process.communicate(timeout=60)[0]
    assert time.monotonic() - began < 30
    assert process.returncode == 128 + signal.SIGKILL, said
    assert "Rank 1 was killed (SIGKILL)" in said
    assert read_run(folder / name).status == "failed"
    assert "Rank 1" in next((folder / name).glob("*/*.log")).read_text()


def test_more_processes_than_cards(folder):
    values = spec(folder, "many", lora=True, batch=1, accumulate=1)
    config = folder / "many.yaml"
    config.write_text(json.dumps(values))
    process = type_train(config, size=CARDS + 1)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert f"has {CARDS} cards" in said
    assert f"NPROC_PER_NODE={CARDS}" in said
