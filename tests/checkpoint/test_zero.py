"""Folders of DeepSpeed: the weights that were cut up are put together again, for every stage and number of ranks."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from old_files import write_zero

from xtuner.checkpoint.state import load_state, load_weights
from xtuner.errors import UserError

GROUPS = [
    {
        "llm.layers.0.w": torch.arange(15.0).view(3, 5),
        "llm.layers.0.b": torch.tensor([-1.5]),
        "llm.layers.1.w": 100 + torch.arange(14.0).view(7, 2),
        "llm.scale": torch.tensor(0.25),
    },
    {"llm.norm": torch.tensor([7.0, 8.0, 9.0])},
]
WEIGHTS = {name: tensor for group in GROUPS for name, tensor in group.items()}


@pytest.mark.parametrize("prefix", ["", "bf16_"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_every_stage_and_number_of_ranks(tmp_path: Path, world: int, stage: int, prefix: str) -> None:
    folder = tmp_path / "iter_3.pth"
    write_zero(folder, GROUPS, world=world, stage=stage, prefix=prefix, shared={"llm.tied": "llm.layers.0.w"})
    weights = load_weights(Path(f"{folder}:"))
    assert list(weights) == [*WEIGHTS, "llm.tied"], "no frozen weight and no buffer"
    for name, tensor in WEIGHTS.items():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], tensor), name
    assert torch.equal(weights["llm.tied"], WEIGHTS["llm.layers.0.w"])
    state = load_state(folder)
    assert state["meta"]["iter"] == 3
    assert set(state) == {"meta", "message_hub", "param_schedulers", "state_dict"}
    assert not {"mmengine", "deepspeed"} & set(sys.modules)


def test_more_than_nine_ranks_are_in_order(tmp_path: Path) -> None:
    folder = write_zero(tmp_path / "iter_3.pth", GROUPS, world=12, stage=3)
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in load_weights(folder).items())


def test_the_newest_of_several(tmp_path: Path) -> None:
    write_zero(tmp_path / "global_step3", GROUPS, world=2, stage=2)
    (tmp_path / "latest").write_text("global_step3")
    assert torch.equal(load_weights(tmp_path)["llm.norm"], WEIGHTS["llm.norm"])
    for name in ("../global_step3", "global_step4"):
        (tmp_path / "latest").write_text(name)
        with pytest.raises(UserError, match="which is not there"):
            load_weights(tmp_path)


def test_without_an_optimizer_the_16_bit_weights_are_taken(tmp_path: Path) -> None:
    folder = write_zero(tmp_path / "iter_3.pth", GROUPS, world=2, stage=2)
    for file in folder.glob("*optim*"):
        file.unlink()
    weights = load_weights(folder)
    assert torch.equal(weights["llm.norm"], WEIGHTS["llm.norm"].half())
    whole = write_zero(tmp_path / "iter_4.pth", GROUPS, world=2, stage=3)
    for file in whole.glob("*optim*"):
        file.unlink()
    with pytest.raises(UserError, match="lacks the optim_states files"):
        load_weights(whole)


@pytest.mark.parametrize("stage", [2, 3])
def test_an_incomplete_folder_is_one_sentence(tmp_path: Path, stage: int) -> None:
    folder = write_zero(tmp_path / "iter_3.pth", GROUPS, world=4, stage=stage)
    parts = sorted(folder.glob("*optim*"))
    shutil.move(parts[2], tmp_path / "kept")
    with pytest.raises(UserError, match="lacks the optim_states file of 1 of 4 ranks, the first is 2"):
        load_weights(folder)
    shutil.move(tmp_path / "kept", parts[2])
    parts[3].unlink()
    with pytest.raises(UserError, match="of 1 of 4 ranks, the first is 3"):
        load_weights(folder)
    next(folder.glob("zero_pp_rank_0_*_model_states.pt" if stage == 3 else "*_model_states.pt")).unlink()
    with pytest.raises(UserError, match="lacks the model_states file of rank 0"):
        load_weights(folder)


@pytest.mark.parametrize("stage", [1, 3])
def test_files_of_two_runs_are_refused(tmp_path: Path, stage: int) -> None:
    folder = write_zero(tmp_path / "iter_3.pth", GROUPS, world=4, stage=stage)
    other = write_zero(tmp_path / "iter_4.pth", GROUPS, world=2, stage=stage)
    for file in other.glob("*optim*"):
        shutil.copy(file, folder / file.name)
    with pytest.raises(UserError, match="files of different runs, of 2 and 4 ranks"):
        load_weights(folder)


@pytest.mark.parametrize("stage", [2, 3])
def test_ranks_that_do_not_fit_are_refused(tmp_path: Path, stage: int) -> None:
    """A file of a run with other weights, with as many ranks."""
    folder = write_zero(tmp_path / "iter_3.pth", GROUPS, world=2, stage=stage)
    larger = [{**GROUPS[0], "llm.more": torch.ones(100)}, GROUPS[1]]
    other = write_zero(tmp_path / "iter_4.pth", larger, world=2, stage=stage)
    for file in other.glob("*optim*"):
        shutil.copy(file, folder / file.name)
    with pytest.raises(UserError, match="do not fit each other"):
        load_weights(folder)


@pytest.mark.parametrize("kind", ["model_states", "optim_states"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_named(tmp_path: Path, kind: str, share: float) -> None:
    folder = write_zero(tmp_path / "iter_3.pth", GROUPS, world=2, stage=2)
    file = sorted(folder.glob(f"*{kind}.pt"))[-1]
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=rf"{file.name} is cut short"):
        load_weights(folder)


def test_a_split_model_is_refused(tmp_path: Path) -> None:
    folder = write_zero(tmp_path / "iter_3.pth", GROUPS, world=1, stage=1)
    shutil.copy(folder / "mp_rank_00_model_states.pt", folder / "mp_rank_01_model_states.pt")
    with pytest.raises(UserError, match="split across 2 cards"):
        load_weights(folder)


def test_the_name_of_a_file_inside_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ls -t work_dirs/x/*.pth | head -n 1` prints it when there is one folder."""
    folder = write_zero(tmp_path / "iter_3.pth", GROUPS, world=1, stage=2, prefix="bf16_")
    monkeypatch.chdir(tmp_path)
    name = next(folder.glob("*optim*")).name
    with pytest.raises(UserError, match="belongs to a checkpoint that is a folder"):
        load_weights(Path(name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is a folder, not a checkpoint"):
        load_weights(tmp_path / "empty")


def test_memory_is_that_of_one_weight(tmp_path: Path) -> None:
    """A folder of 192 MB, its weights taken one after the other: mapped pages come and go, copies do not pile up."""
    weights = {f"llm.{index}": torch.full((8, 2**20), float(index)) for index in range(6)}
    folder = write_zero(tmp_path / "iter_3.pth", [weights], world=2, stage=2)
    program = (
        "import sys\nfrom pathlib import Path\nfrom xtuner.checkpoint.state import load_weights\n"
        "def held(): return int(open('/proc/self/statm').read().split()[1]) * 4096 // 2**20 - shared()\n"
        "def shared(): return int(open('/proc/self/statm').read().split()[2]) * 4096 // 2**20\n"
        "before = held()\nweights = load_weights(Path(sys.argv[1]))\nmost = 0\n"
        "for index, name in enumerate(weights):\n    tensor = weights[name]\n    most = max(most, held() - before)\n"
        "    assert float(tensor[0, 0]) == float(tensor[-1, -1]) == index\nprint(most)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80
