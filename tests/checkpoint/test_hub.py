"""A model is a folder, or a hub id that is already here; without a network that is said in a sentence."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xtuner.checkpoint.hub import DownloadBar, find_folder
from xtuner.errors import UserError

DESCRIBE = "import sys; from xtuner.checkpoint.run_record import describe_base; print(describe_base(sys.argv[1]))"
FIND = """
import sys
from xtuner.checkpoint.hub import find_folder
from xtuner.errors import UserError
for name in sys.argv[1:]:
    try:
        print(sorted(path.name for path in find_folder(name, weights=True).iterdir()))
    except UserError as error:
        print(error)
"""


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_folder(tmp_path, weights=True) == tmp_path
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "nowhere", tmp_path / "file", "./nowhere", "a/b/c", "~/x"):
        with pytest.raises(UserError, match="no model folder"):
            find_folder(wrong, weights=True)


def test_hub_ids_offline(tmp_path: Path) -> None:
    commit = "0" * 40
    snapshot = tmp_path / "hub" / "models--Lab--known" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    refs = tmp_path / "hub" / "models--Lab--known" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    done = subprocess.run(
        [sys.executable, "-c", FIND, "Lab/known", "Lab/unknown", "bad//id"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    known, unknown, bad = done.stdout.splitlines()
    assert known == "['config.json', 'model.safetensors']"
    assert unknown.startswith("Lab/unknown is neither a folder here nor a model that can be reached on the hub.")
    assert bad.startswith("There is no model folder bad//id.")
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, "Lab/known"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    digest = hashlib.sha256(b"{}").hexdigest()
    assert done.stdout.strip() == str({"path": "Lab/known", "config_hash": digest, "revision": commit}), done.stderr


def test_without_a_network_nobody_waits(tmp_path: Path) -> None:
    proxies = {"http_proxy", "https_proxy", "all_proxy", "hf_hub_offline"}
    env = {key: value for key, value in os.environ.items() if key.lower() not in proxies}
    done = subprocess.run(
        [sys.executable, "-c", FIND, "Lab/unknown"],
        capture_output=True,
        text=True,
        env={**env, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"},
        timeout=60,
    )
    assert done.stdout.startswith("Lab/unknown is neither a folder here nor a model that can be reached on the hub.")
    assert done.stderr == ""


def test_a_download_shows_its_bytes_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bars that the library makes, with the words it makes them with, while its own switch is off."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    sent = DownloadBar(desc="Downloading bytes", total=0, unit="B", unit_scale=True, bar_format="{desc}")
    here = DownloadBar(desc="Reconstructing (incomplete total...)", total=0, unit="B", unit_scale=True)
    files = DownloadBar(desc="Fetching 3 files", total=3)
    assert [bar.disable for bar in (sent, here, files)] == [True, False, True]
    here.total = 3_000_000
    here.update(1_000_000)
    here.refresh()
    shown = capsys.readouterr().err
    assert "Downloading:  33%" in shown
    assert "1.00M/3.00M" in shown
    here.set_description("Reconstruction complete")
    assert here.disable, "closed"
    assert not capsys.readouterr().err.rsplit("\r", 1)[-1].strip(), "and wiped"


def test_a_download_into_a_file_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    bar = DownloadBar(desc="Reconstructing", total=10, unit="B")
    bar.update(5)
    bar.refresh()
    assert capsys.readouterr().err == ""
