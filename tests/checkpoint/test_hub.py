"""A model is a folder, or a hub id that is already here; without a network that is said in a sentence."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xtuner.checkpoint.hub import find_folder
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
