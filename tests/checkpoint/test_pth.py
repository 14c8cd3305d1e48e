"""Files of `torch.save` with foreign objects inside: the weights come out, nothing is imported or run."""

import builtins
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from old_files import write_pth

from xtuner.checkpoint.pth import load_pth
from xtuner.checkpoint.pth_pickle import Foreign, Malformed, read_pickle
from xtuner.checkpoint.state import load_state, load_weights
from xtuner.errors import UserError

SHARED = torch.arange(12.0).view(3, 4)
STATE = {
    "llm.a": SHARED,
    "llm.b": SHARED.T[1:],
    "llm.c": torch.randn(3).bfloat16(),
    "llm.d": torch.nn.Parameter(torch.ones(2)),
    "llm.e": torch.tensor(3),
    "llm.f": torch.empty(0, 4),
}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_mmengine(tmp_path: Path, zipped: bool) -> None:
    state = load_state(write_pth(tmp_path / "iter_3.pth", STATE, zipped=zipped))
    assert list(state["state_dict"]) == list(STATE)
    for name, tensor in state["state_dict"].items():
        assert torch.equal(tensor, STATE[name]), name
        assert tensor.dtype == STATE[name].dtype
    assert state["meta"]["iter"] == 3
    assert state["meta"]["cfg"] == "max_epochs = 3\n"
    assert state["message_hub"]["runtime_info"]["kinds"] == {"a", "b"}
    history = state["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(history, Foreign)
    assert history.name == "mmengine.logging.history_buffer.HistoryBuffer"
    assert history.state["max_length"] == 1000000
    assert state["meta"]["dataset_meta"].items == [("length", 7)]
    assert not {"mmengine", "deepspeed"} & set(sys.modules)


def test_tensors_stay_on_the_disk(tmp_path: Path) -> None:
    """Opening a file of 256 MB takes little memory, and reading it takes that of what is read."""
    path = tmp_path / "big.pth"
    torch.save({"state_dict": {f"w{index}": torch.ones(16, 2**20) for index in range(4)}}, path)
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom xtuner.checkpoint.state import load_weights\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\nbefore = peak()\n"
        "weights = load_weights(Path(sys.argv[1]))\nopened = peak() - before\n"
        "assert float(weights['w2'].sum()) == 2**24\nprint(opened, peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    opened, read = map(int, done.stdout.split())
    assert opened < 20
    assert read < 100


def save(path: Path, data: bytes) -> Path:
    """A file of torch whose pickle is `data`."""
    plain = io.BytesIO()
    torch.save({"w": torch.ones(4)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as archive:
        for info in source.infolist():
            archive.writestr(info.filename, data if info.filename.endswith("data.pkl") else source.read(info))
    return path


class Call:
    """An object that, unpickled the usual way, calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def hostile(trace: Path) -> dict[str, Any]:
    code = f"open({str(trace)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {trace}"),
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "open": Call(builtins.open, str(trace), "w"),
        "subprocess": Call(subprocess.run, ["touch", str(trace)]),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "import": Call(__import__, "antigravity"),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", list(hostile(Path("x"))))
def test_what_wants_to_run_is_refused(tmp_path: Path, kind: str, protocol: int) -> None:
    trace = tmp_path / "trace"
    data = pickle.dumps({"state_dict": {}, "x": hostile(trace)[kind]}, protocol=protocol)
    path = save(tmp_path / "iter_3.pth", data)
    with pytest.raises(UserError, match=r"wants [\w.]+ to be run when it is opened; nothing of it was run"):
        load_state(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cposix\nsystem\nX\x01\x00\x00\x00x\x85R.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"\x80\x02c__builtin__\ngetattr\ncposix\nsystem\n\x86.",
        b"\x80\x02c__builtin__\ngetattr\n}X\x06\x00\x00\x00update\x86R.",
        b"\x80\x02ccopyreg\n_reconstructor\ncposix\nsystem\n\x85R.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01x\x85R.",
        b"\x80\x02crunpy\n_run_code\n)R.",
        b"\x80\x02cimportlib\nimport_module\n)R.",
    ],
)
def test_names_of_the_system_are_refused_in_every_spelling(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="nothing of it was run"):
        load_state(save(tmp_path / "iter_3.pth", data))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x80\x02\x82\x01.", id="extension registry"),
        pytest.param(b"(cposixx\nsystem\nS'x'\no.", id="old objects"),
        pytest.param(b"(S'x'\niposixx\nsystem\n.", id="old instances"),
        pytest.param(b"\x80\x02h\x05.", id="absent memo"),
        pytest.param(b"\x80\x02}" + b")" + b"\x85" * 400_000 + b"K\x01s.", id="nested key"),
        pytest.param(b"\x80\x02)" + b"\x85" * 400_000 + b".", id="nested tuple"),
        pytest.param(b"\x80\x02" + b"]" * 100 + b"a" * 99, id="no end"),
        pytest.param(b"\x80\x02X\xff\xff\xff\xffx.", id="text longer than the file"),
        pytest.param(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0fx.", id="bytes longer than the machine"),
        pytest.param(b"\x80\x02K\x01r\xff\xff\xff\xff.", id="huge memo"),
        pytest.param(b"\x80\x02K\x01K\x02R.", id="call of a number"),
        pytest.param(b"\x80\x02K\x01Q.", id="a storage of nothing"),
        pytest.param(b"\x80\x02K\x01}b.", id="state of a number"),
        pytest.param(b"\x80\x02}(K\x01u.", id="key without value"),
        pytest.param(b"\x80\x022222", id="empty stack"),
        pytest.param(b"\x80\x02tttt.", id="no mark"),
        pytest.param(b"\xff\xfe\xfd", id="no pickle"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_bombs_and_rubbish_are_one_sentence(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="not a checkpoint"):
        load_state(save(tmp_path / "iter_3.pth", data))


def tensor(arguments: str) -> bytes:
    """A pickle of a tensor over the storage of `save`, with offset, size and stride as pickle text."""
    storage = "(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"
    return f"(dVw\nctorch._utils\n_rebuild_tensor_v2\n({storage}{arguments}I00\nNtRs.".encode()


@pytest.mark.parametrize(
    "arguments",
    ["I1\n(I4\nt(I1\nt", "I-1\n(I2\nt(I1\nt", "I0\n(I3\nt(I2\nt", "I0\n(I-3\nt(I2\nt", "I0\n(I2\nt(I1\nI1\nt"],
)
def test_tensors_outside_of_their_storage_are_refused(tmp_path: Path, arguments: str) -> None:
    assert load_pth(save(tmp_path / "good.pth", tensor("I0\n(I4\nt(I1\nt")))["w"].tolist() == [1, 1, 1, 1]
    with pytest.raises(UserError, match="not a checkpoint"):
        load_state(save(tmp_path / "bad.pth", tensor(arguments)))


def test_a_weight_larger_than_its_numbers_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "iter_3.pth", tensor("I0\n(I1000000000000\nt(I0\nt"))
    with pytest.raises(UserError, match="w is larger than what is saved of it"):
        load_weights(path)


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "iter_3.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_state(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_an_old_file_cut_anywhere_is_one_sentence(tmp_path: Path, share: float, zipped: bool) -> None:
    path = write_pth(tmp_path / "iter_3.pth", {**STATE, "llm.z": torch.ones(5000)}, zipped=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="not a checkpoint, or it is cut short"):
        load_state(path)


def test_weights_have_the_names_of_the_model(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in STATE.items()}
    state |= {"module.ref_llm.a": torch.ones(1), "module.llm.layers.0.rotary_emb.inv_freq": torch.ones(2)}
    path = write_pth(tmp_path / "iter_3.pth", state)
    weights = load_weights(Path(f"{path}:"))
    assert sorted(weights) == sorted(STATE)
    assert torch.equal(weights["llm.b"], STATE["llm.b"])
    torch.save(dict(STATE), tmp_path / "bare.pth")
    assert sorted(load_weights(tmp_path / "bare.pth")) == sorted(STATE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"a": Path("x")}}, r"a is a pathlib\."),
        ({"state_dict": [1]}, "holds no state_dict"),
        ({"meta": 1}, "meta is a int"),
        ({"state_dict": {}}, "holds no weights"),
    ],
)
def test_something_else_in_place_of_weights(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "iter_3.pth")
    with pytest.raises(UserError, match=message):
        load_weights(tmp_path / "iter_3.pth")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back_equal(protocol: int) -> None:
    shared = [1, "两"]
    value = {
        "numbers": (0, -1, 255, 65536, 2**40, -(2**70), 1.5, True, None),
        "texts": ["", "a" * 300, "你好"],
        "sets": [{1, 2}, b"", b"ab", {(1, "a"): 2}],
        "nested": [[], [[]], {}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), shared, shared],
    }
    assert read_pickle(pickle.dumps(value, protocol=protocol), {}, {}) == value
    with pytest.raises(Malformed):
        read_pickle(pickle.dumps(value, protocol=protocol)[:-1], {}, {})
