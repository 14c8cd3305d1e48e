"""What strategies are made of, in one process: who gets which rows, where processes are, DeepSpeed's settings."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine_fakes import make_batch

from xtuner.cli.launch import first_host, is_first_here, read_layout, take_place
from xtuner.cli.spread import choose_strategy, read_deepspeed
from xtuner.config.spec import RunSpec
from xtuner.dataset.batch import IGNORE
from xtuner.dataset.sampler import Order
from xtuner.engine.precision import Precision
from xtuner.engine.strategy.bucket import Buckets
from xtuner.engine.strategy.deepspeed import check_known
from xtuner.engine.strategy.parallel import checksum
from xtuner.engine.strategy.sequence import Ulysses
from xtuner.engine.strategy.world import World
from xtuner.engine.strategy.zero_config import cost_alone, fill_config
from xtuner.errors import UserError

FLOAT32 = Precision(torch.float32, torch.float32, "")
BFLOAT16 = Precision(torch.bfloat16, torch.bfloat16, "")


def make_spec(**parts) -> RunSpec:
    return RunSpec.model_validate({"model": {"path": "m"}, "data": {"train": "x.json"}, **parts})


@pytest.mark.parametrize(("world", "accumulate", "packs"), [(2, 4, 64), (4, 3, 53), (3, 1, 10)])
def test_ranks_get_equal_work_and_the_same_packs(world, accumulate, packs):
    lengths = np.random.default_rng(0).integers(10, 2000, packs)

    def orders(**more):
        return [Order(packs, 2, True, 5, rank, world, **more) for rank in range(world)]

    plain, dealt = orders(), orders(lengths=lengths, accumulate=accumulate)
    per_epoch = plain[0].iters_per_epoch
    sums = np.zeros((2, world))
    for start in range(0, per_epoch, accumulate):
        step = range(start, min(start + accumulate, per_epoch))
        rows = [[[order.rows(n) for n in step] for order in kind] for kind in (plain, dealt)]
        flat = [sorted(row for rank in kind for iteration in rank for row in iteration) for kind in rows]
        assert flat[0] == flat[1]  # a step holds the same packs
        assert all(len(a) == len(b) for one, other in zip(*rows, strict=True) for a, b in zip(one, other, strict=True))
        for place, kind in enumerate(rows):
            tokens = [sum(lengths[row] for iteration in rank for row in iteration) for rank in kind]
            sums[place] += np.max(tokens)
    assert sums[1].sum() <= sums[0].sum()  # the longest rank decides how long a step takes
    assert dealt[1].rows(7) == Order(packs, 2, True, 5, 1, world, lengths=lengths, accumulate=accumulate).rows(7)
    assert dealt[0].of(1).rows(3) == dealt[1].rows(3)


def test_spare_packs_are_known():
    orders = [Order(5, 1, False, 0, rank, 4) for rank in range(4)]
    assert [order.is_spare(1) for order in orders] == [False, True, True, True]
    assert not any(order.is_spare(0) for order in orders)


def test_layout():
    layout = read_layout({"NPROC_PER_NODE": "4"})
    assert (layout.processes, layout.machines, layout.port, layout.several) == (4, 1, None, True)
    assert not read_layout({}).several
    assert not read_layout({"NPROC_PER_NODE": " "}).several
    found = read_layout({"NNODES": "2", "NODE_RANK": "1", "ADDR": "10.0.0.1", "PORT": "2345"})
    assert (found.machines, found.machine, found.address, found.port) == (2, 1, "10.0.0.1", 2345)


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"NPROC_PER_NODE": "two"}, "NPROC_PER_NODE is two"),
        ({"NPROC_PER_NODE": "0"}, "NPROC_PER_NODE is 0"),
        ({"NNODES": "2"}, "PORT is not set"),
        ({"NNODES": "2", "NODE_RANK": "2", "PORT": "1"}, "NODE_RANK is 2"),
    ],
)
def test_wrong_layouts(variables, word):
    with pytest.raises(UserError, match=word) as error:
        read_layout(variables)
    assert error.value.exit_code == 2


def test_slurm(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "ADDR", "PORT", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="srun has not started this"):
        take_place("slurm")
    given = {"PROCID": "5", "NTASKS": "8", "LOCALID": "1", "NODEID": "1", "STEP_TASKS_PER_NODE": "4(x2)"}
    for name, value in {**given, "STEP_NODELIST": "gpu[03-05],cpu1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "")
    monkeypatch.setenv("GROUP_RANK", "")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    take_place("slurm")
    import os

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["5", "8", "1", "4", "1", "gpu03", "29500"]
    assert not is_first_here()
    for name in names:
        os.environ.pop(name)


@pytest.mark.parametrize(
    ("names", "first"), [("gpu1", "gpu1"), ("gpu1,gpu2", "gpu1"), ("n[01-03,7]", "n01"), ("a[2,5]-ib,b", "a2-ib")]
)
def test_first_host(names, first):
    assert first_host(names) == first


def test_auto_is_filled_in_one_place():
    config = read_deepspeed("deepspeed_zero3")
    config["zero_optimization"]["reduce_bucket_size"] = "auto"
    spec = make_spec(loop={"batch_size": 2, "accumulate": 8}, optim={"max_norm": 0.5})
    filled = fill_config(config, spec, BFLOAT16, 4, 100)
    assert (filled["train_micro_batch_size_per_gpu"], filled["gradient_accumulation_steps"]) == (2, 8)
    assert filled["train_batch_size"] == 64
    assert filled["gradient_clipping"] == 0.5
    assert (filled["bf16"]["enabled"], filled["fp16"]["enabled"]) == (True, False)
    assert filled["zero_optimization"]["reduce_bucket_size"] == 10_000
    assert '"auto"' not in json.dumps(filled)
    assert config["gradient_clipping"] == "auto"  # the caller's is as it was
    with pytest.raises(UserError, match=r"zero_optimization\.sub_group_size"):
        fill_config({"zero_optimization": {"sub_group_size": "auto"}}, spec, BFLOAT16, 4, 100)
    with pytest.raises(UserError, match="a section optimizer"):
        fill_config({"optimizer": {"type": "Adam"}}, spec, BFLOAT16, 4, 100)


def test_zero_on_one_card_says_what_it_costs():
    spec = make_spec()
    filled = fill_config(read_deepspeed("deepspeed_zero2"), spec, BFLOAT16, 1, 100)
    assert "saves nothing, and may take up to 5.6 GiB more" in cost_alone(filled, 10**9)  # 4e9 bytes and 2 buckets
    assert cost_alone(fill_config(read_deepspeed("deepspeed_zero2_offload"), spec, FLOAT32, 1, 100), 10**9) == ""


def test_names_of_deepspeed_configs(tmp_path):
    flags = SimpleNamespace(strategy=None, deepspeed=None)
    found = choose_strategy(make_spec(strategy="deepspeed_zero1"), flags).strategy
    assert (found.name, found.options["config"]["zero_optimization"]["stage"]) == ("deepspeed", 1)
    (tmp_path / "own.json").write_text('{"zero_optimization": {"stage": 2}}')
    own = SimpleNamespace(strategy=None, deepspeed=str(tmp_path / "own.json"))
    assert choose_strategy(make_spec(), own).strategy.options["config"] == {"zero_optimization": {"stage": 2}}
    assert choose_strategy(make_spec(), flags).strategy.name == "auto"
    with pytest.raises(UserError, match="Did you mean deepspeed_zero2"):
        read_deepspeed("deepspeed_zero_2")
    with pytest.raises(UserError, match="Give one of them"):
        choose_strategy(make_spec(), SimpleNamespace(strategy="ddp", deepspeed="deepspeed_zero2"))


class Runs:
    """A pickle of it would call something."""

    def __reduce__(self):
        return (print, ("ran",))


def test_a_hostile_zero_folder_is_not_given_to_deepspeed(tmp_path):
    torch.save({"meta": {}, "x": torch.ones(2)}, tmp_path / "good.pt")
    check_known(tmp_path / "good.pt")
    torch.save({"meta": {"x": [Runs()]}}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="print"):
        check_known(tmp_path / "bad.pt")


def test_the_checksum_sees_bytes_and_their_places():
    weight = torch.nn.Parameter(torch.arange(100, dtype=torch.uint8), requires_grad=False)
    first = checksum([weight])
    weight.data[[3, 4]] = weight.data[[4, 3]]
    assert checksum([weight]) != first
    weight.data[[3, 4]] = weight.data[[4, 3]]
    assert checksum([weight]) == first


def test_buckets_hold_the_gradients():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    buckets = Buckets(list(model.parameters()))
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
    assert len(buckets.flat) == 1
    found = torch.cat([p.grad.flatten() for p in reversed(list(model.parameters()))])
    assert torch.equal(found, buckets.flat[0])
    buckets.clear()
    assert all(not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("segments", [[[1, 2, 3]], [[1, 2, 3, 4]], [[1, 2], [3, 4, 5]], [[1, 2, 3], [4]]])
def test_a_row_is_cut_into_equal_parts(segments):
    """Together the parts are the row and what fills it up, which is not learned."""
    batch = make_batch(segments)
    parts = []
    for place in range(2):
        ulysses = Ulysses(World(), 1)
        ulysses.size, ulysses.place = 2, place
        parts.append(ulysses.cut(batch))
    length = batch.input_ids.shape[1]
    ids, labels = (torch.cat([getattr(part, name) for part in parts], 1)[0] for name in ("input_ids", "labels"))
    assert torch.equal(ids[:length], batch.input_ids[0])
    assert torch.equal(labels[:length], batch.labels[0])
    assert (labels[length:] == IGNORE).all()
    borders = parts[0].packing.cu_seqlens.tolist()
    assert borders[-1] == len(ids)
    assert len(borders) > 2
    assert borders[: len(segments) + 1] == batch.packing.cu_seqlens.tolist()


def test_heads_and_ranks_must_fit():
    with pytest.raises(UserError, match="sequence_parallel_size is 3, and there are 1 processes"):
        Ulysses(World(), 3)
