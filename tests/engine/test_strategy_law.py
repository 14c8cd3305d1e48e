"""One trajectory: however the rows of a step are spread over batches, ranks and shards, the losses are the same."""

import json

import pytest
import torch
from strategy_fakes import DDP, FSDP, SHARDED_ULYSSES, STEPS, TEXTS, ULYSSES, losses, per_step, run_cases, spec
from tiny import make_tiny_internlm2

from xtuner.checkpoint.state import load_state, load_weights
from xtuner.config.spec import RunSpec
from xtuner.engine.train import train
from xtuner.errors import UserError
from xtuner.export.to_hf import pth_to_hf

GROUPS = "offload_groups"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model, data, and the runs of one and of two processes."""
    folder = tmp_path_factory.mktemp("law")
    make_tiny_internlm2(folder / "model")
    (folder / "data.json").write_text(json.dumps(TEXTS))
    alone = {
        "lora": spec(folder, "lora", lora=True, batch=4, accumulate=1),
        "lora_cut": spec(folder, "lora_cut", lora=True, batch=1, accumulate=4, recompute="layers"),
        "full": spec(folder, "full", lora=False, batch=4, accumulate=1),
        "packed": spec(folder, "packed", lora=True, batch=2, accumulate=2, pack=True),
    }
    for name, values in alone.items():
        train(RunSpec.model_validate(values), name=name)
    two = {
        "lora_ddp": spec(folder, "lora_ddp", lora=True, batch=1, accumulate=2, strategy=DDP),
        "full_ddp": spec(folder, "full_ddp", lora=False, batch=2, accumulate=1, recompute=GROUPS, strategy=DDP),
        "lora_fsdp": spec(folder, "lora_fsdp", lora=True, batch=1, accumulate=2, strategy=FSDP, recompute="layers"),
        "full_fsdp": spec(folder, "full_fsdp", lora=False, batch=1, accumulate=2, strategy=FSDP),
        "full_fsdp_again": spec(folder, "full_fsdp", lora=False, batch=1, accumulate=2, strategy=FSDP)
        | {"resume": str(folder / "full_fsdp" / "iter_20.pth"), "work_dir": str(folder / "full_fsdp_again")},
        "lora_ddp_again": spec(folder, "lora_ddp_again", lora=True, batch=1, accumulate=2, strategy=DDP)
        | {"resume": str(folder / "lora_ddp" / "iter_20.pth")},
        "lora_ulysses": spec(
            folder, "lora_ulysses", lora=True, batch=2, accumulate=2, strategy=ULYSSES, recompute=GROUPS
        ),
        "full_ulysses": spec(folder, "full_ulysses", lora=False, batch=4, accumulate=1, strategy=SHARDED_ULYSSES),
        "single_ulysses": spec(folder, "single_ulysses", lora=False, batch=1, accumulate=4, strategy=ULYSSES),
        "packed_ddp": spec(folder, "packed_ddp", lora=True, batch=1, accumulate=2, strategy=DDP, pack=True),
    }
    run_cases(folder, two)
    return folder


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("lora_cut", "lora"),
        ("lora_ddp", "lora"),
        ("lora_fsdp", "lora"),
        ("lora_ulysses", "lora"),
        ("full_ddp", "full"),
        ("full_fsdp", "full"),
        ("full_ulysses", "full"),
        ("single_ulysses", "full"),
        ("packed_ddp", "packed"),
    ],
)
def test_one_trajectory(folder, name, reference):
    expected = per_step(folder / reference)
    assert len(expected) == STEPS
    assert expected[0] - expected[-1] > 0.5  # it learns something
    torch.testing.assert_close(per_step(folder / name), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["full_fsdp", "lora_ddp"])
def test_resume_is_never_having_stopped(folder, name):
    """Bit for bit at the same number of processes: the weights, and the losses."""
    whole, again = folder / name / "iter_40.pth", folder / f"{name}_again" / "iter_40.pth"
    expected, found = load_weights(whole), load_weights(again)
    assert set(expected) == set(found)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert losses(folder / f"{name}_again") == {n: loss for n, loss in losses(folder / name).items() if n > 20}


def test_a_sharded_checkpoint_goes_on_with_another_number_of_processes(folder):
    """Two processes saved it; one goes on, and its 40 iterations are those that are left of 80."""
    values = spec(folder, "fewer", lora=False, batch=1, accumulate=4, strategy=FSDP)
    values["resume"] = str(folder / "full_fsdp" / "iter_20.pth")
    train(RunSpec.model_validate(values), name="fewer")
    found = losses(folder / "fewer")
    assert list(found) == list(range(44, 81, 4))
    expected = [loss for number, loss in losses(folder / "full_fsdp").items() if number > 20]
    torch.testing.assert_close(list(found.values()), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("saved", "strategy", "sentence"),
    [
        ("full_fsdp", {"name": "single"}, "was saved by strategy=fsdp, and the strategy of this run takes files"),
        ("full", FSDP, "was saved by one process or strategy=ddp"),
    ],
)
def test_what_another_strategy_saved_is_refused_by_its_name(folder, saved, strategy, sentence):
    values = spec(folder, "other", lora=False, batch=1, accumulate=4, strategy=strategy)
    values["resume"] = str(sorted((folder / saved).glob("iter_*.pth"))[0])
    with pytest.raises(UserError, match=f"{sentence}.*model.weights="):
        train(RunSpec.model_validate(values), name="other")


def test_what_is_saved_is_what_was_learned(folder, tmp_path):
    """The folder of FSDP, read as every checkpoint is; the export of it."""
    state = load_state(folder / "full_fsdp" / "iter_40.pth")
    expected = load_weights(folder / "full" / "iter_20.pth")
    assert set(state["state_dict"]) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(state["state_dict"][name], weight, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in (folder / "full_fsdp" / "iter_40.pth").iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
    ]
    made = RunSpec.model_validate(spec(folder, "x", lora=True, batch=1, accumulate=1))
    pth_to_hf(made, folder / "lora_fsdp" / "iter_40.pth", tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_only_rank_0_writes(folder):
    assert len([path for path in (folder / "lora_ddp").iterdir() if path.name.startswith("20")]) == 1
    log = next((folder / "lora_ddp").glob("*/*.log")).read_text()
    assert log.count("Iter(train) [ 2/40]") == 1
    assert "2 processes, strategy ddp" in log
