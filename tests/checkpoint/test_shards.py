"""Weights one at a time: every layout is read, shards are written whole or not at all, damage is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xtuner.checkpoint.folder import fresh_folder, require_space
from xtuner.checkpoint.shards import ShardReader, ShardWriter, read_size
from xtuner.errors import UserError

TENSORS = {
    "model.a.weight": torch.arange(12.0).reshape(3, 4),
    "model.b.weight": torch.arange(6, dtype=torch.bfloat16),
    "model.c.weight": torch.tensor(7.0),
    "output.weight": torch.ones(5, 5, dtype=torch.float16),
}


def written(folder: Path, max_bytes: int, safe: bool = True) -> list[str]:
    with ShardWriter(folder, max_bytes, safe) as writer:
        for name, tensor in TENSORS.items():
            writer.add(name, tensor)
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("500MB", 5 * 10**8), ("1.5 GiB", 3 * 2**29), ("7", 7), (9, 9), ("1kb", 1000)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-2GB", "2XB", "0MB", "two GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="not a size") as caught:
        read_size(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("max_bytes", [10**6, 60, 1])
def test_round_trip(tmp_path: Path, safe: bool, max_bytes: int) -> None:
    names = written(tmp_path, max_bytes, safe)
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    if max_bytes == 10**6:
        assert names == [f"{stem}.{suffix}"]
    else:
        count = 2 if max_bytes == 60 else 4
        shards = [f"{stem}-{number:05d}-of-{count:05d}.{suffix}" for number in range(1, count + 1)]
        assert names == sorted([*shards, f"{stem}.{suffix}.index.json"])
        index = json.loads((tmp_path / f"{stem}.{suffix}.index.json").read_text())
        assert index["metadata"]["total_size"] == 48 + 12 + 4 + 50
    reader = ShardReader(tmp_path)
    assert sorted(reader.names()) == sorted(TENSORS)
    assert reader.safe is safe
    for name, tensor in TENSORS.items():
        assert reader.shape(name) == tuple(tensor.shape)
        read = reader.get(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


@pytest.mark.parametrize("safe", [True, False])
def test_others_may_read_what_is_written(tmp_path: Path, safe: bool) -> None:
    (tmp_path / "plain").touch()
    written(tmp_path / "out", 10**6, safe)
    assert {file.stat().st_mode for file in (tmp_path / "out").iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_a_view_is_written_alone(tmp_path: Path) -> None:
    """Neither a slice nor two names of one tensor may drag the whole storage along, or be refused."""
    big = torch.zeros(1000, 100)
    for safe in (True, False):
        with ShardWriter(tmp_path / str(safe), 10**9, safe) as writer:
            writer.add("part", big[:2])
            writer.add("turned", big[:3].T)
        assert ShardReader(tmp_path / str(safe)).num_bytes() < 5000


def test_shards_without_an_index_and_old_torch_files(tmp_path: Path) -> None:
    for number, name in enumerate(TENSORS, start=1):
        file = tmp_path / f"pytorch_model-{number:05d}-of-00004.bin"
        torch.save({name: TENSORS[name]}, file, _use_new_zipfile_serialization=False)
    reader = ShardReader(tmp_path)
    assert all(torch.equal(reader.get(name), tensor) for name, tensor in TENSORS.items())
    file.unlink()
    with pytest.raises(UserError, match="3 of 4 shards"):
        ShardReader(tmp_path)


def test_what_is_read_is_independent_of_the_file(tmp_path: Path) -> None:
    written(tmp_path, 10**6)
    tensor = ShardReader(tmp_path).get("model.a.weight")
    tensor += 1
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert torch.equal(tensor, TENSORS["model.a.weight"] + 1)


@pytest.mark.parametrize("safe", [True, False])
def test_a_shard_cut_short_is_named(tmp_path: Path, safe: bool) -> None:
    written(tmp_path, 60, safe)
    shard = next(path for path in sorted(tmp_path.iterdir()) if "-00002-of" in path.name)
    shard.write_bytes(shard.read_bytes()[:-20])
    reader = ShardReader(tmp_path)
    reader.get("model.a.weight")
    with pytest.raises(UserError, match=rf"{shard.name} is cut short"):
        reader.get("output.weight")


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        ShardReader(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no weights"):
        ShardReader(tmp_path)
    written(tmp_path, 60)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors"):
        ShardReader(tmp_path)
    written(tmp_path, 60)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    name = next(iter(index["weight_map"]))
    other = next(file for file in index["weight_map"].values() if file != index["weight_map"][name])
    index["weight_map"][name] = other
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for method in (ShardReader.get, ShardReader.shape):
        with pytest.raises(UserError, match=rf"says that {name} is in {other}, and it is not"):
            method(ShardReader(tmp_path), name)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="not an index"):
        ShardReader(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is cut short"):
        ShardReader(tmp_path)


def test_no_code_comes_out_of_a_bin_file(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    torch.save({"x": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        ShardReader(tmp_path)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ShardWriter(tmp_path, 1) as writer:  # noqa: PT012
        writer.add("a", torch.zeros(3))
        writer.add("b", torch.zeros(3))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, sys, torch
from pathlib import Path
from xtuner.checkpoint.shards import ShardWriter
from xtuner.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
try:
    with ShardWriter(Path(sys.argv[1]), 10**7, safe=sys.argv[2] == "safe") as writer:
        for name in "abcdef":
            writer.add(name, torch.zeros(10**6))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["safe", "bin"])
@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit on this system")
def test_a_full_disk_is_a_sentence(tmp_path: Path, kind: str) -> None:
    """A file size limit fails a write as a full disk does."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), kind], capture_output=True, text=True)
    assert done.stdout.startswith("The disk is full while writing"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_fresh_folder_replaces_weights_of_an_earlier_export(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "config.json").write_text("old")
    written(folder, 60, safe=False)
    with fresh_folder(folder) as aside:
        written(aside, 10**6)
        (aside / "config.json").write_text("new")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    assert (folder / "config.json").read_text() == "new"
    assert sorted(load_file(folder / "model.safetensors")) == sorted(TENSORS)


def test_fresh_folder_keeps_the_old_when_it_fails(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), fresh_folder(folder) as aside:  # noqa: PT012
        written(aside, 60)
        raise ZeroDivisionError
    assert not folder.exists()
    written(folder, 60)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ZeroDivisionError), fresh_folder(folder):
        raise ZeroDivisionError
    assert sorted(path.name for path in folder.iterdir()) == before
    with pytest.raises(UserError, match="is a file"), fresh_folder(folder / before[0]):
        pass


def test_space_is_asked_for_early(tmp_path: Path) -> None:
    require_space(tmp_path / "a" / "b", 10)
    with pytest.raises(UserError, match=r"needs 1,000,000,000,000\.0 MB"):
        require_space(tmp_path / "a" / "b", 10**18)


@pytest.mark.parametrize("name", ["../secret.safetensors", "{folder}/secret.safetensors", "a/b.safetensors"])
def test_an_index_reads_nothing_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    (tmp_path / "model" / "a").mkdir(parents=True)
    save_file({"a": torch.ones(1)}, tmp_path / "model" / "a" / "b.safetensors")
    index = {"weight_map": {"a": name.format(folder=tmp_path)}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names a file outside of its folder"):
        ShardReader(tmp_path / "model")


def test_a_failed_move_leaves_the_old_weights(tmp_path: Path) -> None:
    """A folder where a file should go fails the move, after the weights were moved in."""
    written(tmp_path, 60, safe=False)
    (tmp_path / "z.json").mkdir()
    with pytest.raises(UserError, match="cannot be written"), fresh_folder(tmp_path) as aside:  # noqa: PT012
        written(aside, 10**6)
        (aside / "z.json").touch()
    assert (tmp_path / "pytorch_model.bin.index.json").is_file()
    assert sorted(ShardReader(tmp_path).names()) == sorted(TENSORS)
