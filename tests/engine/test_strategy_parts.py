"""What strategies are made of, in one process: who gets which rows, where processes are, DeepSpeed's settings."""

import collections
import fractions
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine_fakes import make_batch

from xtuner.cli.spread import choose_strategy, read_deepspeed
from xtuner.config.spec import RunSpec
from xtuner.dataset.batch import IGNORE
from xtuner.dataset.sampler import Order
from xtuner.engine.precision import Precision
from xtuner.engine.resume import check_same
from xtuner.engine.strategy.bucket import Buckets
from xtuner.engine.strategy.deepspeed import DeepSpeed
from xtuner.engine.strategy.parallel import checksum
from xtuner.engine.strategy.sequence import Ulysses
from xtuner.engine.strategy.unpickle import only_data
from xtuner.engine.strategy.world import World
from xtuner.engine.strategy.zero_config import check_sharded, cost_alone, drop_sections, fill_config
from xtuner.engine.workdir import check_common
from xtuner.errors import UserError
from xtuner.model.attention import PACKED
from xtuner.model.families.deepseek_moe import DeepseekConfig, DeepseekForCausalLM

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


def test_sections_that_leave_all_to_the_run_are_left_out():
    left = {
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}},
    }
    assert drop_sections({**left, "zero_optimization": {"stage": 2}}) == {"zero_optimization": {"stage": 2}}
    for section in (
        {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}},
        {"optimizer": {"type": "OneBitAdam", "params": {"lr": "auto"}}},
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 100}}},
        {"curriculum_learning": {"enabled": True}},
    ):
        with pytest.raises(UserError, match=f"a section {next(iter(section))}, which has no effect"):
            drop_sections(section)


def test_tiles_do_not_go_with_zero_3():
    spec = make_spec(model={"path": "m", "recompute": "offload"})
    with pytest.raises(UserError, match="recompute=offload calls an MLP once for every tile"):
        check_sharded(spec, 2, sharded=True)
    check_sharded(spec, 1, sharded=True)
    check_sharded(spec, 2, sharded=False)
    check_sharded(make_spec(), 2, sharded=True)


def test_weights_in_full_do_not_go_with_zero_3():
    spec = make_spec(model={"path": "m", "lora": {"r": 4}, "quant": {"bits": 4, "resident": True}})
    with pytest.raises(UserError, match=r"model\.quant\.resident has no effect with ZeRO-3"):
        check_sharded(spec, 1, sharded=True)
    check_sharded(spec, 2, sharded=False)


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

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "print": Runs(print, "ran"),
    "getattr": Runs(getattr, "text", "upper"),
    "torch.hub.get_dir": Runs(torch.hub.get_dir),
    "torch.serialization.load": Runs(torch.load, "other.pt"),
    "collections.namedtuple": Runs(collections.namedtuple, "a", "b"),
    "fractions.Fraction": fractions.Fraction(1, 2),
}


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_foreign_loader_makes_listed_classes_alone(tmp_path, name, as_zip):
    """A loader such as DeepSpeed's, which asks torch to run what a file says."""
    file = tmp_path / "states.pt"
    torch.save({"meta": [HOSTILE[name]], "x": torch.ones(2)}, file, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(UserError, match=f"asks for (builtins.)?{name} to be called"), only_data(file, ()):
        torch.load(file, weights_only=False)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_listed_classes_and_tensors_are_made(tmp_path):
    file = tmp_path / "states.pt"
    torch.save({"half": fractions.Fraction(1, 2), "x": torch.ones(2)}, file)
    with only_data(file, ["fractions.Fraction", "fractions.Gone", "not.installed.Here"]):
        found = torch.load(file, weights_only=False)
    assert found["half"] == fractions.Fraction(1, 2)
    file.write_bytes(b"\xff\xff")
    with pytest.raises(UserError, match="is damaged"), only_data(file, ()):
        torch.load(file, weights_only=False)


PARTS = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]


@pytest.mark.parametrize(
    ("files", "sharded", "sentence"),
    [
        ([*PARTS, "mp_rank_00_model_states.pt"], False, None),
        ([*PARTS, "mp_rank_00_model_states.pt"], True, "1 of the model, of ZeRO-1 or 2; .*here 2 of ZeRO-3"),
        ([*PARTS, *(name.replace("optim", "model") for name in PARTS)], False, "of ZeRO-3; .*here 2 of ZeRO-1 or 2"),
        ([PARTS[0], "mp_rank_00_model_states.pt"], False, "1 parts of the optimiser"),
        ([*PARTS], False, "0 of the model"),
        ([".metadata"], False, "was saved by strategy=fsdp"),
        ([], False, "a folder without a checkpoint in it"),
    ],
)
def test_folders_that_deepspeed_does_not_go_on_from(tmp_path, files, sharded, sentence):
    for name in files:
        (tmp_path / name).touch()
    strategy = SimpleNamespace(world=SimpleNamespace(size=2), sharded=sharded)
    if sentence is None:
        DeepSpeed.check_kind(strategy, tmp_path)
        return
    with pytest.raises(UserError, match=sentence):
        DeepSpeed.check_kind(strategy, tmp_path)


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


class Meeting(World):
    """One of two ranks, each in a thread."""

    size = 2

    def __init__(self, rank: int, table: list[int], barrier: threading.Barrier) -> None:
        self.rank, self.table, self.barrier = rank, table, barrier

    def agree(self, number: int) -> int:
        self.table[self.rank] = number
        self.barrier.wait()
        found = max(self.table)
        self.barrier.wait()
        return found

    def first(self, action: Callable[[], None]) -> None:
        if self.rank == 0:
            action()
        self.barrier.wait()


def said_to_two(check: Callable[[Meeting], None]) -> list[str]:
    """The errors of two ranks that call `check` with their worlds; "" where there is none."""
    table, barrier = [0, 0], threading.Barrier(2, timeout=60)

    def call(rank: int) -> str:
        try:
            check(Meeting(rank, table, barrier))
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(call, range(2)))


def found_by_two(*found) -> list[str]:
    """What `check_same` says to two ranks that found these checkpoints."""
    return said_to_two(lambda world: check_same(*found[world.rank], world))


def test_ranks_go_on_from_one_checkpoint():
    one, other = (Path("work/iter_20.pth"), {"iter": 20, "seed": 1}), (Path("b/iter_40.pth"), {"iter": 40, "seed": 1})
    elsewhere = (Path("mounted/iter_20.pth"), {"iter": 20, "seed": 1})
    assert found_by_two(one, elsewhere) == ["", ""]
    assert found_by_two((None, None), (None, None)) == ["", ""]
    assert all("at iterations 20 and 40" in said for said in found_by_two(one, other))
    assert all("at iterations 0 and 20" in said for said in found_by_two((None, None), one))
    changed = (Path("work/iter_20.pth"), {"iter": 20, "seed": 2})
    assert all("with different contents" in said for said in found_by_two(one, changed))


def test_ranks_that_write_parts_of_checkpoints_have_one_work_dir(tmp_path, monkeypatch):
    """In two there would be no whole checkpoint, and nobody would know before the run has to go on from it."""
    monkeypatch.setattr("xtuner.engine.workdir.PATIENCE", 0.2)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    link = tmp_path / "mounted"
    link.symlink_to(folders[0])
    said = said_to_two(lambda world: check_common(folders[world.rank], world))
    assert all("Rank 1 does not see the work dir of rank 0" in sentence for sentence in said)
    assert said_to_two(lambda world: check_common([folders[0], link][world.rank], world)) == ["", ""]
    assert [list(folder.iterdir()) for folder in folders] == [[], []]


def test_experts_that_are_balanced_within_sequences_are_not_spread():
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ulysses = Ulysses(World(), 1)
    ulysses.size = 2
    config = DeepseekConfig(**sizes, **heads, n_routed_experts=4, num_experts_per_tok=2)
    config._attn_implementation = PACKED
    with pytest.raises(UserError, match="keeps its experts evenly busy"):
        ulysses.attach(DeepseekForCausalLM(config))
