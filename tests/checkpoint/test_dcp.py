"""Folders of `torch.distributed.checkpoint`, read without a process group and without running their pickle."""

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from xtuner.checkpoint.state import load_state, load_weights
from xtuner.errors import UserError

WEIGHTS = {"llm.a": torch.arange(24.0).view(4, 6), "llm.b": torch.ones(3).bfloat16(), "llm.c": torch.tensor(2.0)}

SHARDED = """
import os
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = {"llm.a": torch.arange(35.0).view(5, 7), "llm.b": torch.arange(3.0)}
sharded = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in whole.items()}
moments = {name: distribute_tensor(torch.zeros_like(tensor), mesh, [Shard(0)]) for name, tensor in whole.items()}
dcp.save({"model": sharded, "optimizer": {"exp_avg": moments}, "meta": {"iter": 3}}, checkpoint_id=folder)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # some versions of torch leave a thread that ends the process with an error
"""


def save(state: dict[str, Any], folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no process group is there is what is wanted
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.mark.parametrize("root", ["state_dict", "model", None])
def test_weights_come_back(tmp_path: Path, root: str | None) -> None:
    state = {root: WEIGHTS, "optimizer": {"m": torch.zeros(3)}, "meta": {"iter": 3, "l": [1]}} if root else WEIGHTS
    folder = save(state, tmp_path / "iter_3.pth")
    weights = load_weights(Path(f"{folder}:"))
    assert sorted(weights) == sorted(WEIGHTS)
    assert all(torch.equal(weights[name], tensor) for name, tensor in WEIGHTS.items())
    assert {name: tensor.dtype for name, tensor in weights.items()} == {n: t.dtype for n, t in WEIGHTS.items()}
    if root:
        assert load_state(folder)["meta"] == {"iter": 3, "l": [1]}


def test_chunks_of_two_processes(tmp_path: Path) -> None:
    folder = tmp_path / "iter_3.pth"
    command = [sys.executable, "-c", SHARDED]
    ranks = [subprocess.Popen([*command, str(rank), str(folder)], stderr=subprocess.PIPE) for rank in range(2)]
    for rank in ranks:
        _, error = rank.communicate(timeout=120)
        assert rank.returncode == 0, error
    weights = load_weights(folder)
    assert torch.equal(weights["llm.a"], torch.arange(35.0).view(5, 7))
    assert torch.equal(weights["llm.b"], torch.arange(3.0))
    assert sorted(weights) == ["llm.a", "llm.b"]
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(UserError, match=r"lacks __1_0\.distcp"):
        load_weights(folder)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_cut_short(tmp_path: Path, name: str, share: float) -> None:
    folder = save({"state_dict": WEIGHTS, "meta": {"iter": 3}}, tmp_path / "iter_3.pth")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=rf"{name} is cut short"):
        dict(load_weights(folder))


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trace",)


def test_a_hostile_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save({"state_dict": WEIGHTS}, tmp_path / "iter_3.pth")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../../etc/passwd"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="is cut short, or is no file of torch"):
        load_weights(folder)
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="nothing of it was run"):
        load_weights(folder)
    assert not (tmp_path / "trace").exists()
