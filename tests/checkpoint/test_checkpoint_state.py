"""`.pth` files: whole or not there, plain data only, found again."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from xtuner.checkpoint.atomic import put_in_place, remove_leftovers, whole_file
from xtuner.checkpoint.run_record import RunRecord, describe_base, is_run_folder, read_run, write_run
from xtuner.checkpoint.state import find_last, load_state, save_state, write_pointer
from xtuner.errors import UserError

STATE = {"meta": {"iter": 3, "cfg": "a = 1"}, "state_dict": {"llm.w": torch.arange(6.0).view(2, 3)}, "list": [1, None]}


def run_python(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *arguments], capture_output=True, text=True, timeout=60
    )


def test_state_comes_back_equal(tmp_path):
    path = tmp_path / "iter_3.pth"
    save_state(path, STATE)
    loaded = load_state(path)
    assert torch.equal(loaded["state_dict"]["llm.w"], STATE["state_dict"]["llm.w"])
    assert loaded["meta"] == STATE["meta"]
    assert os.listdir(tmp_path) == ["iter_3.pth"]


def test_colon_of_ls_is_dropped(tmp_path):
    save_state(tmp_path / "iter_3.pth", STATE)
    assert load_state(Path(f"{tmp_path}/iter_3.pth:"))["meta"]["iter"] == 3


def test_only_plain_data_is_written(tmp_path):
    with pytest.raises(AssertionError, match=r"state.meta.path is a PosixPath"):
        save_state(tmp_path / "iter_3.pth", {"meta": {"path": Path("a")}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9, 0.97, 0.999])
def test_file_cut_short_is_an_error(tmp_path, share):
    """Wherever it ends: torch raises different things then, with eight tensors an OSError too."""
    path = tmp_path / "iter_3.pth"
    save_state(path, {**STATE, "state_dict": {f"w{index}": torch.ones(100) for index in range(8)}})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="cut short"):
        load_state(path)


def test_other_files_are_errors(tmp_path):
    with pytest.raises(UserError, match="There is no checkpoint"):
        load_state(tmp_path / "iter_9.pth")
    with pytest.raises(UserError, match="is a folder"):
        load_state(tmp_path)
    text = tmp_path / "a.pth"
    text.write_text("hello, this is no checkpoint at all")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_state(text)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="it holds a list"):
        load_state(tmp_path / "list.pth")


class Evil:
    """An object whose unpickling leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_comes_out_of_a_checkpoint(tmp_path, zipped):
    path, trace = tmp_path / "iter_3.pth", tmp_path / "trace"
    torch.save({"message_hub": Evil(str(trace))}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"wants posix\.mkdir to be run"):
        load_state(path)
    path.write_bytes(pickle.dumps(Evil(str(trace))))
    with pytest.raises(UserError):
        load_state(path)
    assert not trace.exists()


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    import torch
    from xtuner.checkpoint.state import save_state
    from xtuner.errors import UserError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save_state(Path(sys.argv[1]), {"meta": {"iter": 4}, "w": torch.zeros(100_000)})
    except UserError as error:
        print(error)
"""


def test_full_disk_leaves_the_previous_file(tmp_path):
    path = tmp_path / "iter_3.pth"
    save_state(path, STATE)
    result = run_python(FULL_DISK, str(path))
    assert "disk is full" in result.stdout, result.stderr
    assert "Earlier checkpoints are intact" in result.stdout
    assert os.listdir(tmp_path) == ["iter_3.pth"]
    assert load_state(path)["meta"]["iter"] == 3


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from xtuner.checkpoint.atomic import whole_file
    with whole_file(Path(sys.argv[1])) as file:
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_writer_leaves_the_previous_file(tmp_path):
    path = tmp_path / "iter_3.pth"
    save_state(path, STATE)
    assert run_python(KILLED, str(path)).returncode == -signal.SIGKILL
    assert load_state(path)["meta"]["iter"] == 3
    assert find_last(tmp_path) == path
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def files_in(folder):
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("new", ["folder", "file"])
def test_one_of_two_folders_is_whole_whenever_the_exchange_ends(tmp_path, new, monkeypatch):
    """As for a process that is killed before its first, second, ... change: the next start finds one of the two."""
    replaced = (os, "replace"), (shutil, "rmtree")
    found = []
    for last in range(4):
        folder = tmp_path / str(last)
        path, aside = folder / "iter_3.pth", folder / ".iter_3.pth.part"
        path.mkdir(parents=True)
        (path / "a").write_text("old")
        (path / "b").write_text("old")
        if new == "folder":
            aside.mkdir()
            (aside / "a").write_text("new")
        else:
            aside.write_text("new")
        done = []

        def count(plain, done=done, last=last):
            def call(*words):
                if len(done) == last:
                    raise KeyboardInterrupt
                done.append(words)
                return plain(*words)

            return call

        with monkeypatch.context() as patch:
            for module, name in replaced:
                patch.setattr(module, name, count(getattr(module, name)))
            with suppress(KeyboardInterrupt):
                put_in_place(aside, path)
        remove_leftovers(folder)
        found.append(files_in(folder))
    old = {"iter_3.pth/a": "old", "iter_3.pth/b": "old"}
    whole = {"iter_3.pth/a": "new"} if new == "folder" else {"iter_3.pth": "new"}
    assert found == [old, old, whole, whole]


def test_a_file_takes_the_place_of_a_folder_that_another_strategy_left(tmp_path):
    path = tmp_path / "iter_3.pth"
    path.mkdir()
    (path / "part").write_text("of ZeRO")
    save_state(path, STATE)
    assert load_state(path)["meta"]["iter"] == 3
    assert os.listdir(tmp_path) == ["iter_3.pth"]
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(UserError, match="cannot be written"), whole_file(folder):
        pass
    assert folder.is_dir()


def test_missing_folder_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be written"), whole_file(tmp_path / "no" / "file"):
        pass


def test_find_last_follows_the_pointer_then_the_numbers(tmp_path):
    assert find_last(tmp_path) is None
    for number in (500, 1000, 90):
        save_state(tmp_path / f"iter_{number}.pth", STATE)
    assert find_last(tmp_path) == tmp_path / "iter_1000.pth"
    write_pointer(tmp_path, tmp_path / "iter_500.pth")
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "iter_500.pth")
    assert find_last(tmp_path) == tmp_path / "iter_500.pth"
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    assert find_last(moved) == moved / "iter_500.pth"
    (moved / "iter_500.pth").unlink()
    assert find_last(moved) == moved / "iter_1000.pth"


def test_find_last_stays_in_the_folder(tmp_path):
    """A copy of a work dir goes on from its own checkpoints, also while the original is there."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    for number in (1, 2):
        save_state(original / f"iter_{number}.pth", STATE)
    write_pointer(original, original / "iter_2.pth")
    shutil.copytree(original, copy)
    assert find_last(copy) == copy / "iter_2.pth"
    (copy / "iter_2.pth").unlink()
    assert find_last(copy) == copy / "iter_1.pth"
    (copy / "iter_1.pth").unlink()
    assert find_last(copy) == original / "iter_2.pth"  # checkpoints that were written elsewhere


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\x00junk", b"/"])
def test_a_damaged_pointer_is_passed_over(tmp_path, content):
    save_state(tmp_path / "iter_7.pth", STATE)
    (tmp_path / "last_checkpoint").write_bytes(content)
    assert find_last(tmp_path) == tmp_path / "iter_7.pth"


def test_run_record_comes_back_equal(tmp_path):
    record = RunRecord({"model": {"path": "模型"}}, template="internlm2_chat", last_checkpoint="iter_3.pth")
    assert not is_run_folder(tmp_path)
    with pytest.raises(UserError, match=r"no run\.json"):
        read_run(tmp_path)
    write_run(tmp_path, record)
    assert is_run_folder(tmp_path)
    assert read_run(tmp_path) == read_run(tmp_path / "run.json") == record
    (tmp_path / "run.json").write_text("[1")
    with pytest.raises(UserError, match="not the record of a run"):
        read_run(tmp_path)


def test_base_is_described_by_place_and_hash(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path.parent)
    described = describe_base(tmp_path.name)
    assert described["path"] == str(tmp_path)
    assert described["config_hash"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert describe_base("org/name") == {"path": "org/name", "config_hash": None, "revision": None}
    assert describe_base("no/hub/id") == {"path": "no/hub/id", "config_hash": None, "revision": None}


def test_a_clean_up_that_fails_does_not_hide_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a read-only disk even the removal of a file that is not there is refused."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken cannot be written: Is a directory"), whole_file(tmp_path / "taken"):
        pass
